/*
 * A kernel that cuts no datagrams on the way to one IPv4 address, REFUSES_TRAINS_TO: it answers EIO, as where a transform
 * (xfrm) is on the route (udp_send_skb in net/ipv4/udp.c). Preloaded into a process; everything else is the real kernel's.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <stdlib.h>
#include <sys/socket.h>

static int is_refused(struct msghdr *message)
{
	const struct sockaddr_in *to = message->msg_name;
	struct in_addr refused;

	if (!to || to->sin_family != AF_INET || inet_pton(AF_INET, getenv("REFUSES_TRAINS_TO"), &refused) != 1 ||
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
