use super::*;
use crate::upstream::settings::UpstreamAddress;

fn bench(addresses: usize) -> Bench {
    Bench::new(|settings| {
        let hosts = (0..addresses).map(|at| UpstreamAddress::parse(&format!("mqtt://{at}.test")).unwrap());
        settings.addresses = hosts.collect();
    })
}

fn link(limit: u32) -> Link {
    Link { max_packet_size: Some(limit), ..V5 }
}

impl Bench {
    /// Appends messages of these sizes, and after them a small one.
    fn append_sizes(&mut self, sizes: &[usize]) {
        for size in sizes {
            self.append(&draft("t", &vec![b'x'; *size]));
        }
        self.append(&draft("t", b"small"));
    }

    /// Connects to an address, takes all that comes, and ends the connection. Returns the sizes of what came.
    fn visit(&mut self, address: usize, link: Link, now: u64) -> Vec<usize> {
        self.session.at_address(address);
        let actions = self.session.connected(link, now);
        self.perform(actions);
        self.take_back_large();
        let sizes = self.take(now);
        self.disconnect(&Broken::Failed("the line is cut".into()));
        sizes
    }

    fn take(&mut self, now: u64) -> Vec<usize> {
        let mut sizes = Vec::new();
        loop {
            self.pump(now);
            let arrived = self.deliver(1);
            if arrived.is_empty() {
                return sizes;
            }
            sizes.extend(arrived.iter().map(String::len));
            (1..=arrived.len()).for_each(|id| self.ack(id as u16, 0));
        }
    }

    fn too_large(&self) -> (u64, usize) {
        (self.ledger().dropped.too_large, self.large.0.len())
    }
}

#[test]
fn what_one_address_takes_waits_for_it_while_another_is_in_use() {
    let mut bench = bench(2);
    assert_eq!(bench.visit(0, V5, 0), Vec::<usize>::new());
    bench.append_sizes(&[5000; 10]);
    assert_eq!(bench.visit(1, link(1000), 1), [5], "it holds up nothing");
    assert_eq!(bench.too_large(), (0, 10));
    bench.append_sizes(&[6000]);
    assert_eq!(bench.visit(1, link(1000), 2), [5]);
    assert_eq!(bench.large.1, 0, "what is larger than that is not looked at again");
    assert_eq!(bench.visit(0, V5, 3), [vec![5000; 10], vec![6000]].concat());
    assert_eq!((bench.too_large(), bench.ledger().acked, bench.ledger().pending), ((0, 0), 13, 0));
}

#[test]
fn it_is_offered_to_every_address_and_dropped_when_none_takes_it() {
    let mut bench = bench(3);
    bench.append_sizes(&[5000, 1500]);
    assert_eq!(bench.visit(0, link(1000), 0), [5]);
    assert_eq!(bench.too_large(), (0, 2));
    assert_eq!(bench.visit(1, link(2000), 1), [1500]);
    assert_eq!(bench.too_large(), (0, 1), "nothing is known of the third");
    assert_eq!(bench.visit(2, link(500), 2), Vec::<usize>::new());
    assert_eq!(bench.too_large(), (1, 0));
    // one that is as large as the best one takes waits for that, and is dropped there if the rest of its packet is too much
    bench.append_sizes(&[1994]);
    assert_eq!(bench.visit(0, link(1000), 3), [5]);
    assert_eq!(bench.too_large(), (1, 1));
    assert_eq!(bench.visit(1, link(2000), 4), Vec::<usize>::new());
    assert_eq!((bench.too_large(), bench.ledger().pending), ((2, 0), 0));
}

#[test]
fn an_address_that_takes_less_than_before_is_believed_after_an_hour() {
    let mut bench = bench(1);
    assert_eq!(bench.visit(0, V5, 0), Vec::<usize>::new());
    bench.append_sizes(&[2000]);
    assert_eq!(bench.visit(0, link(1000), 1), [5]);
    assert_eq!(bench.too_large(), (0, 1), "it may be another node, or one that is being upgraded");
    assert_eq!(bench.visit(0, V5, 2), [2000]);
    bench.append_sizes(&[2000]);
    bench.session.at_address(0);
    let actions = bench.session.connected(link(1000), 10);
    bench.perform(actions);
    assert_eq!(bench.take(10), [5]);
    let due = bench.session.deadline().unwrap();
    assert_eq!(due, 10 + SMALLER_MS);
    bench.time(due - 1);
    assert_eq!(bench.too_large(), (0, 1));
    bench.time(due);
    assert_eq!(bench.take(due), Vec::<usize>::new());
    assert_eq!((bench.too_large(), bench.ledger().pending, bench.ledger().acked), ((1, 0), 0, 3));
    // from now on what is too large is dropped at once
    bench.append_sizes(&[2000]);
    assert_eq!(bench.take(due), [5]);
    assert_eq!((bench.too_large(), bench.session.deadline()), ((2, 0), None));
}
