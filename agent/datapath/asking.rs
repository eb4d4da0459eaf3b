//! What a socket is to tell of each datagram, which costs it time in the kernel: only what may matter.

/// When a socket is to tell where datagrams arrive. It costs each a twentieth of its way through the kernel, and hardly
/// ever changes: under load it is asked now and then.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// How many readings in a row found the socket busy.
    busy: usize,
}

impl Asking {
    /// From so many messages of one reading on a socket is busy.
    const BUSY: usize = 16;
    /// Of so many readings of a busy socket the first few ask.
    const TURN: usize = 32;
    const FEW: usize = 4;

    /// Whether to ask, after a reading of so many messages.
    pub(super) fn next(&mut self, messages: usize) -> bool {
        self.busy = if messages < Self::BUSY { 0 } else { self.busy.wrapping_add(1) };
        self.busy % Self::TURN < Self::FEW
    }
}

/// When the socket of a peer is to tell how routers marked each datagram, which costs each a fiftieth of its way through
/// the kernel. They mark what says outside that its sender can be told (RFC 3168 section 5), as the packet inside does:
/// while there is none of those nothing is asked. Of the first that come then, the marks of one reading are not seen.
#[derive(Debug, Default)]
pub(super) struct Marking {
    /// How many readings in a row had no packet that can be marked.
    without: usize,
}

impl Marking {
    /// After so many readings in a row without, none is expected.
    pub(super) const MANY: usize = 64;

    /// Whether to ask, after a reading which had or had not a packet that can be marked.
    pub(super) fn next(&mut self, has_markable: bool) -> bool {
        self.without = if has_markable { 0 } else { self.without.saturating_add(1) };
        self.without < Self::MANY
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_socket_always_tells_where_and_a_busy_one_now_and_then() {
        let mut asking = Asking::default();
        let mut of = |messages: usize| (0..1000).filter(|_| asking.next(messages)).count();
        assert_eq!(of(1), 1000);
        assert_eq!(of(15), 1000);
        assert!((100..150).contains(&of(32)));
        assert_eq!(of(1), 1000);
    }

    #[test]
    fn a_peer_who_sends_nothing_that_can_be_marked_is_not_asked_for_marks() {
        let mut marking = Marking::default();
        assert_eq!((0..100).filter(|_| marking.next(false)).count(), Marking::MANY - 1);
        assert!(marking.next(true));
        assert_eq!((0..100).filter(|_| marking.next(false)).count(), Marking::MANY - 1);
    }
}
