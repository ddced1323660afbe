use super::*;

impl Bench {
    /// Connects, takes `taken` messages, and ends the connection with others in flight. Returns how many were in flight at once.
    fn cut(&mut self, taken: usize) -> usize {
        self.connect(V4);
        let mut most = 0;
        let mut left = taken;
        loop {
            self.pump(0);
            let arrived = self.deliver(1).len();
            most = most.max(arrived);
            let acks = arrived.min(left);
            (1..=acks).for_each(|id| self.ack(id as u16, 0));
            left -= acks;
            if acks < arrived || arrived == 0 {
                break;
            }
        }
        self.disconnect(&Broken::Closed);
        most
    }
}

#[test]
fn ends_that_no_message_causes_do_not_slow_down_the_others() {
    let mut bench = Bench::new(|_| {});
    bench.append_many(0..60);
    let most: Vec<usize> = (0..8).map(|_| bench.cut(5)).collect();
    assert_eq!(most[0], 4, "the window");
    assert_eq!(most[4..], [4, 4, 4, 4], "{most:?}");
    assert!(!bench.session.blames(), "so the client id may be the reason");
}

#[test]
fn a_message_that_ends_connections_is_found_among_other_ends() {
    let mut bench = Bench::new(|_| {});
    bench.append_many(0..30);
    let most = (0..5).map(|_| bench.cut(3)).max();
    assert_eq!(most, Some(4));
    let acked = bench.ledger().acked;
    bench.append(&draft("poison", b"poison"));
    bench.append_many(100..140);
    for _ in 0..60 {
        bench.connect(V4);
        loop {
            bench.pump(60_000);
            let sent = std::mem::take(&mut bench.sent);
            if sent.is_empty() {
                break;
            }
            let at = sent.iter().position(|message| &message.payload[..] == b"poison");
            (1..=sent.len()).for_each(|id| bench.perform_sent(id as u16));
            (1..=at.unwrap_or(sent.len())).for_each(|id| bench.ack(id as u16, 0));
            if at.is_some() {
                bench.disconnect(&Broken::Closed);
                break;
            }
        }
        if bench.session.link.is_some() {
            break;
        }
    }
    let ledger = bench.ledger();
    assert_eq!((ledger.acked - acked, ledger.dropped.ends_connection, ledger.pending), (30 - acked + 40, 1, 0));
}

impl Bench {
    fn perform_sent(&mut self, packet_id: u16) {
        let actions = self.session.sent(packet_id);
        self.perform(actions);
    }
}
