// Sends datagrams at a steady rate, and prints how many: flood ADDRESS PORT PER_SECOND SECONDS [MESSAGES]. They are of any
// length with any bytes; or the messages of 148 bytes in a file, by turns, from any address of 172.101.0.0/16.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, LONGEST = 1472, KINDS = 4096, MESSAGE = 148, MESSAGES = 2000 };

// The local address that a message goes from (IP_PKTINFO of ip(7)).
struct source {
    _Alignas(struct cmsghdr) char bytes[CMSG_SPACE(sizeof(struct in_pktinfo))];
};

static void set_source(struct msghdr *message, struct source *source, uint32_t address) {
    message->msg_control = source->bytes;
    message->msg_controllen = sizeof source->bytes;
    struct cmsghdr *control = CMSG_FIRSTHDR(message);
    *control = (struct cmsghdr){CMSG_LEN(sizeof(struct in_pktinfo)), IPPROTO_IP, IP_PKTINFO};
    struct in_pktinfo info = {.ipi_spec_dst.s_addr = htonl(address)};
    memcpy(CMSG_DATA(control), &info, sizeof info);
}

int main(int count, char **words) {
    if (count != 5 && count != 6) {
        fprintf(stderr, "usage: flood ADDRESS PORT PER_SECOND SECONDS [MESSAGES]\n");
        return 2;
    }
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(atoi(words[2]))};
    long rate = atol(words[3]), seconds = atol(words[4]), sent = 0;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (inet_pton(AF_INET, words[1], &target.sin_addr) != 1 || rate <= 0 || fd < 0) return 2;
    static uint8_t noise[KINDS + LONGEST];
    for (size_t at = 0; at < sizeof noise; at++) noise[at] = random() >> 16;
    static uint8_t messages_of_file[MESSAGES][MESSAGE];
    long kept = 0;
    if (count == 6) {
        FILE *file = fopen(words[5], "rb");
        kept = file ? fread(messages_of_file, MESSAGE, MESSAGES, file) : 0;
        if (kept == 0) return 2;
    }
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    while (sent < rate * seconds) {
        struct mmsghdr messages[BATCH] = {0};
        struct iovec vectors[BATCH];
        struct source sources[BATCH] = {0};
        for (int n = 0; n < BATCH; n++) {
            vectors[n] = (struct iovec){noise + random() % KINDS, random() % (LONGEST + 1)};
            messages[n].msg_hdr = (struct msghdr){.msg_name = &target, .msg_namelen = sizeof target,
                                                  .msg_iov = &vectors[n], .msg_iovlen = 1};
            if (kept == 0) continue;
            vectors[n] = (struct iovec){messages_of_file[random() % kept], MESSAGE};
            set_source(&messages[n].msg_hdr, &sources[n], 0xac650000 + 1 + random() % 65534);
        }
        for (int n = 0; n < BATCH;) {
            int done = sendmmsg(fd, messages + n, BATCH - n, 0);
            // A refusal is of an earlier datagram.
            n += done < 0 ? 0 : done;
        }
        sent += BATCH;
        next.tv_nsec += 1000000000L / rate * BATCH;
        while (next.tv_nsec >= 1000000000L) next.tv_nsec -= 1000000000L, next.tv_sec++;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &next, NULL);
    }
    printf("%ld\n", sent);
}
