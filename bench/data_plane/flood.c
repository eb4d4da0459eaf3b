// Sends datagrams of any length with any bytes at a steady rate: flood ADDRESS PORT PER_SECOND SECONDS. Prints how many.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

enum { BATCH = 64, LONGEST = 1472, KINDS = 4096 };

int main(int count, char **words) {
    if (count != 5) {
        fprintf(stderr, "usage: flood ADDRESS PORT PER_SECOND SECONDS\n");
        return 2;
    }
    struct sockaddr_in target = {.sin_family = AF_INET, .sin_port = htons(atoi(words[2]))};
    long rate = atol(words[3]), seconds = atol(words[4]), sent = 0;
    int fd = socket(AF_INET, SOCK_DGRAM, 0);
    if (inet_pton(AF_INET, words[1], &target.sin_addr) != 1 || rate <= 0 || fd < 0) return 2;
    static uint8_t noise[KINDS + LONGEST];
    for (size_t at = 0; at < sizeof noise; at++) noise[at] = random() >> 16;
    struct timespec next;
    clock_gettime(CLOCK_MONOTONIC, &next);
    while (sent < rate * seconds) {
        struct mmsghdr messages[BATCH] = {0};
        struct iovec vectors[BATCH];
        for (int n = 0; n < BATCH; n++) {
            vectors[n] = (struct iovec){noise + random() % KINDS, random() % (LONGEST + 1)};
            messages[n].msg_hdr = (struct msghdr){.msg_name = &target, .msg_namelen = sizeof target,
                                                  .msg_iov = &vectors[n], .msg_iovlen = 1};
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
