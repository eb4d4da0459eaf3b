/*
 * Kernels that refuse what the one that runs here takes. Preloaded into a process; everything else is the real kernel's.
 *
 * REFUSES_TRAINS_TO, an IPv4 address: no datagrams are cut on the way there. It answers EIO, as where a transform (xfrm) is
 * on the route (udp_send_skb in net/ipv4/udp.c).
 * REFUSES_MERGED_TO, a tun device: it takes no packet that is many, for which it is written to in more than two parts. It
 * answers EINVAL, as kernels do that do not know such packets.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <linux/filter.h>
#include <linux/if_tun.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static int is_refused(struct msghdr *message)
{
	const struct sockaddr_in *to = message->msg_name;
	const char *address = getenv("REFUSES_TRAINS_TO");
	struct in_addr refused;

	if (!address || !to || to->sin_family != AF_INET || inet_pton(AF_INET, address, &refused) != 1 ||
	    to->sin_addr.s_addr != refused.s_addr)
		return 0;
	for (struct cmsghdr *control = CMSG_FIRSTHDR(message); control; control = CMSG_NXTHDR(message, control))
		if (control->cmsg_level == SOL_UDP && control->cmsg_type == UDP_SEGMENT)
			return 1;
	return 0;
}

int sendmmsg(int socket, struct mmsghdr *messages, unsigned int count, int flags)
{
	static int (*real)(int, struct mmsghdr *, unsigned int, int);
	unsigned int taken = 0;

	if (!real)
		real = dlsym(RTLD_NEXT, "sendmmsg");
	while (taken < count && !is_refused(&messages[taken].msg_hdr))
		taken++;
	/* Like the kernel's own, it tells of a refusal only where nothing went before. */
	if (taken == 0 && count > 0) {
		errno = EIO;
		return -1;
	}
	return real(socket, messages, taken, flags);
}

/* For all threads from now on. Writes go past libc, so that only the kernel can refuse them. */
static void refuse_merged(int device)
{
	struct sock_filter program[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_writev, 0, 5),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, device, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[2])),
		BPF_JUMP(BPF_JMP | BPF_JGT | BPF_K, 2, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EINVAL),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = { sizeof(program) / sizeof(program[0]), program };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
	    syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &filter)) {
		perror("REFUSES_MERGED_TO");
		abort();
	}
}

int ioctl(int descriptor, unsigned long request, ...)
{
	static int (*real)(int, unsigned long, ...);
	const char *refusing = getenv("REFUSES_MERGED_TO");
	va_list arguments;
	void *argument;
	int result;

	if (!real)
		real = dlsym(RTLD_NEXT, "ioctl");
	va_start(arguments, request);
	argument = va_arg(arguments, void *);
	va_end(arguments);
	result = real(descriptor, request, argument);
	if (result == 0 && request == TUNSETIFF && refusing && !strcmp(((struct ifreq *)argument)->ifr_name, refusing))
		refuse_merged(descriptor);
	return result;
}
