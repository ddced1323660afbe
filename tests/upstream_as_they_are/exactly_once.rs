//! `qos = 2` on rules: each message comes once at an upstream that keeps the session, whatever ends in between. The test
//! plays the upstream, which knows messages by their packet ids, delivers them when they are released [MQTT-4.3.3, method
//! B], and stops at a chosen step while the gateway is killed.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write;
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;

use crate::played::read;
use crate::support::packet::{Packet, Publish, V5, packet, publish};
use crate::support::{Connect, Gateway, Mosquitto, Properties, Setup, http, wait_until};
use crate::{drained, publish as publish_texts};

const PUBLISH: u8 = 3;
const PUBREC: u8 = 5;
const PUBREL: u8 = 6;
const PUBCOMP: u8 = 7;

/// The packet at which the upstream becomes silent.
#[derive(Clone, Copy, Debug)]
struct Stop {
    kind: u8,
    /// The number of packets of this kind before that.
    after: usize,
    /// Whether the packet is still processed, so that only its answer is lost.
    does: bool,
}

#[derive(Default)]
struct State {
    version: u8,
    writer: Option<TcpStream>,
    has_session: bool,
    /// Received messages that are not released yet.
    unreleased: BTreeMap<u16, String>,
    arrived: Vec<String>,
    /// Messages to be sent down, and those in flight: packet id, text, and whether PUBREC has arrived.
    waiting: VecDeque<String>,
    outgoing: VecDeque<(u16, String, bool)>,
    last_id: u16,
    stop: Option<Stop>,
    is_silent: bool,
    /// Whether connections are refused.
    is_gone: bool,
}

impl State {
    fn say(&mut self, bytes: &[u8]) {
        if let Some(writer) = &mut self.writer {
            // the gateway may be gone
            let _ = writer.write_all(bytes);
        }
    }

    fn send(&mut self, id: u16, text: &str, is_again: bool) {
        let properties = Properties::new();
        let properties = (self.version == V5).then_some(&properties);
        let first = if is_again { 0x0c } else { 0x04 };
        self.say(&publish(b"commands/lamp", text.as_bytes(), first, Some(id), properties));
    }

    /// Sends messages down. Up to ten are in flight, with few packet ids that are used again and again.
    fn feed(&mut self) {
        while self.outgoing.len() < 10
            && self.writer.is_some()
            && let Some(text) = self.waiting.pop_front()
        {
            while self.outgoing.iter().any(|(id, ..)| *id == self.last_id) || self.last_id == 0 {
                self.last_id = self.last_id % 13 + 1;
            }
            let id = self.last_id;
            self.outgoing.push_back((id, text.clone(), false));
            self.send(id, &text, false);
        }
    }

    fn hear(&mut self, said: &Packet) {
        if self.is_silent && said.kind() != 1 {
            return;
        }
        let Some(stop) = self.stop.as_mut().filter(|stop| stop.kind == said.kind()) else { return self.act(said) };
        if stop.after > 0 {
            stop.after -= 1;
            return self.act(said);
        }
        let does = stop.does;
        (self.is_silent, self.stop) = (true, None);
        if does {
            let writer = self.writer.take();
            self.act(said);
            self.writer = writer;
        }
    }

    fn act(&mut self, said: &Packet) {
        let none: &[u8] = if self.version == V5 { &[0] } else { &[] };
        match said.kind() {
            1 => {
                assert_eq!(said.body[7] & 2, 0, "the session is to be kept");
                self.is_silent = false;
                self.say(&packet(0x20, &[&[u8::from(self.has_session), 0], none]));
                self.has_session = true;
                for (id, text, is_recorded) in self.outgoing.clone() {
                    match is_recorded {
                        true => self.say(&packet(0x62, &[&id.to_be_bytes()])),
                        false => self.send(id, &text, true),
                    }
                }
                self.feed();
            }
            PUBLISH => {
                let message = Publish::read(said, self.version);
                assert_eq!(message.qos, 2);
                let text = message.text();
                let known = self.unreleased.entry(message.id).or_insert_with(|| text.clone());
                assert_eq!(*known, text, "a packet id stands for one message");
                self.say(&packet(0x50, &[&message.id.to_be_bytes()]));
            }
            PUBREL => {
                self.arrived.extend(self.unreleased.remove(&said.id()));
                self.say(&packet(0x70, &[&said.id().to_be_bytes()]));
            }
            PUBREC => {
                let known = self.outgoing.iter_mut().find(|(id, ..)| *id == said.id());
                known.expect("a message under way").2 = true;
                self.say(&packet(0x62, &[&said.id().to_be_bytes()]));
            }
            PUBCOMP => {
                self.outgoing.retain(|(id, ..)| *id != said.id());
                self.feed();
            }
            8 => self.say(&packet(0x90, &[&said.id().to_be_bytes(), none, &[2]])),
            12 => self.say(&packet(0xd0, &[])),
            _ => {}
        }
    }
}

/// An upstream that keeps sessions.
struct Durable {
    port: u16,
    state: Arc<Mutex<State>>,
}

impl Durable {
    fn new() -> Durable {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state: Arc<Mutex<State>> = Arc::default();
        let shared = state.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let Some(connect) = read(&mut stream) else { continue };
                {
                    let mut state = shared.lock().unwrap();
                    if state.is_gone {
                        continue;
                    }
                    (state.version, state.writer) = (connect.body[6], stream.try_clone().ok());
                    state.hear(&connect);
                }
                let shared = shared.clone();
                thread::spawn(move || {
                    while let Some(packet) = read(&mut stream) {
                        shared.lock().unwrap().hear(&packet);
                    }
                });
            }
        });
        Durable { port, state }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn push(&self, text: String) {
        let mut state = self.state();
        state.waiting.push_back(text);
        if !state.is_silent {
            state.feed();
        }
    }

    /// Ends the connection and refuses others.
    fn go(&self) {
        let mut state = self.state();
        state.is_gone = true;
        if let Some(writer) = state.writer.take() {
            // the gateway may have closed it
            let _ = writer.shutdown(Shutdown::Both);
        }
    }

    fn start(&self, protocol: u8) -> (Gateway, u16) {
        start_at(&[self.port], protocol)
    }
}

/// Starts a gateway with these addresses of the upstream.
fn start_at(ports: &[u16], protocol: u8) -> (Gateway, u16) {
    let addresses: Vec<String> = ports.iter().map(|port| format!("\"mqtt://127.0.0.1:{port}\"")).collect();
    let config = format!(
        "[[upstream]]\nname = \"home\"\naddresses = [{}]\nprotocol = {protocol}\n\
             max_inflight = 10\nretry = {{ min = \"100 ms\", max = \"400 ms\" }}\n\
             [[upstream.out]]\ntopic_filter = \"loft/#\"\nqos = 2\n\
             [[upstream.in]]\ntopic_filter = \"commands/#\"\nqos = 2\n",
        addresses.join(", ")
    );
    let (setup, http) = Setup::default().config(&config).http();
    (setup.start(), http)
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort_by_key(|text| text.parse::<u32>().unwrap());
    texts
}

fn once_over_kills(protocol: u8) {
    let durable = Durable::new();
    let (mut gateway, http) = durable.start(protocol);
    let mut keeper = Connect::v5("keeper").persistent().open(gateway.port);
    keeper.subscribe("commands/#", 2);
    keeper.disconnect();
    let stops = [PUBLISH, PUBREL, PUBREC, PUBCOMP].map(|kind| [true, false].map(|does| Stop { kind, after: 7, does }));
    let mut next = 0;
    for stop in stops.into_iter().flatten() {
        durable.state().stop = Some(stop);
        let texts: Vec<String> = (next..next + 25).map(|number: u32| number.to_string()).collect();
        next += 25;
        texts.iter().for_each(|text| durable.push(text.clone()));
        publish_texts(&gateway, "a", &texts.iter().map(String::as_str).collect::<Vec<_>>(), false);
        wait_until(&format!("{stop:?}"), || durable.state().is_silent);
        gateway = gateway.kill().restart();
        wait_until("the gateway is back", || !durable.state().is_silent);
    }
    assert_eq!(drained(http), 0);
    wait_until("all commands are in", || durable.state().outgoing.is_empty() && durable.state().waiting.is_empty());
    let all: Vec<String> = (0..next).map(|number| number.to_string()).collect();
    assert_eq!(sorted(durable.state().arrived.clone()), all, "went up");
    let mut keeper = Connect::v5("keeper").persistent().open(gateway.port);
    let came: Vec<String> = all.iter().map(|_| keeper.receive().text()).collect();
    keeper.ping();
    assert_eq!(sorted(came), all, "came down");
}

#[test]
fn each_message_comes_once_over_kills_of_the_gateway() {
    once_over_kills(5);
}

#[test]
fn so_it_does_on_3_1_1() {
    once_over_kills(4);
}

/// A mosquitto with its defaults has room for twenty messages that are not released, and before version 5 it drops others without
/// a word.
#[test]
fn no_more_is_in_flight_than_a_mosquitto_has_room_for() {
    const COUNT: usize = 400;
    for protocol in [4, 5] {
        let broker = Mosquitto::with("");
        let mut subscriber = Connect::new("subscriber").open(broker.port);
        subscriber.subscribe("loft/#", 2);
        let config = format!(
            "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{}\"]\nprotocol = {protocol}\n\
             [[upstream.out]]\ntopic_filter = \"loft/#\"\nqos = 2\n",
            broker.port
        );
        let (setup, http) = Setup::default().config(&config).http();
        let gateway = setup.start();
        wait_until("connected", || http::get(http, "/api/v1/upstreams").json()[0]["state"] == "connected");
        let texts: Vec<String> = (0..COUNT).map(|number| number.to_string()).collect();
        let burst = texts.iter().map(|text| publish(b"loft/a", text.as_bytes(), 0, None, None));
        Connect::new("publisher").open(gateway.port).send(&burst.collect::<Vec<_>>().concat());
        let arrived: Vec<String> = texts.iter().map(|_| subscriber.receive().text()).collect();
        assert_eq!(arrived, texts, "version {protocol}");
        assert_eq!(drained(http), 0);
    }
}

#[test]
fn an_upstream_that_forgets_the_session_gets_what_is_in_flight_again() {
    for does in [true, false] {
        let durable = Durable::new();
        let (gateway, http) = durable.start(5);
        durable.state().stop = Some(Stop { kind: PUBREL, after: 7, does });
        let texts: Vec<String> = (0..60).map(|number: u32| number.to_string()).collect();
        publish_texts(&gateway, "a", &texts.iter().map(String::as_str).collect::<Vec<_>>(), false);
        wait_until("it is silent", || durable.state().is_silent);
        {
            let mut state = durable.state();
            let arrived = std::mem::take(&mut state.arrived);
            let writer = state.writer.take();
            *state = State { arrived, ..State::default() };
            writer.unwrap().shutdown(Shutdown::Both).unwrap();
        }
        assert_eq!(drained(http), 0);
        let mut arrived = durable.state().arrived.clone();
        let count = arrived.len();
        arrived = sorted(arrived);
        arrived.dedup();
        assert_eq!(arrived, texts, "nothing is lost");
        assert!(count - texts.len() <= 10, "more came twice than are in flight: {count}");
    }
}

#[test]
fn another_broker_that_knows_us_from_an_earlier_time_loses_nothing() {
    const OLD: &str = "999999";
    for kind in [PUBREL, PUBREC] {
        let (first, second) = (Durable::new(), Durable::new());
        {
            let mut state = second.state();
            state.has_session = true;
            // as if messages had been interrupted at each of these steps
            state.unreleased = (0x4000..0xc000).map(|id| (id, OLD.to_owned())).collect();
        }
        let (gateway, http) = start_at(&[first.port, second.port], 5);
        let mut keeper = Connect::v5("keeper").persistent().open(gateway.port);
        keeper.subscribe("commands/#", 2);
        first.state().stop = Some(Stop { kind, after: 3, does: false });
        (0..20).for_each(|number: u32| first.push(number.to_string()));
        let texts: Vec<String> = (0..60).map(|number: u32| number.to_string()).collect();
        publish_texts(&gateway, "a", &texts.iter().map(String::as_str).collect::<Vec<_>>(), false);
        wait_until("the first is silent", || first.state().is_silent);
        first.go();
        (100..120).for_each(|number: u32| second.push(number.to_string()));
        assert_eq!(drained(http), 0);
        wait_until("its commands are in", || {
            let state = second.state();
            state.outgoing.is_empty() && state.waiting.is_empty()
        });
        let mut arrived = first.state().arrived.clone();
        arrived.extend(second.state().arrived.iter().filter(|text| *text != OLD).cloned());
        let mut arrived = sorted(arrived);
        let count = arrived.len();
        arrived.dedup();
        assert_eq!(arrived, texts, "nothing is lost on the way up");
        assert!(count - texts.len() <= 10, "more came twice than are in flight: {count}");
        let mut commands = Vec::new();
        while commands.iter().filter(|text: &&String| text.len() == 3).count() < 20 {
            commands.push(keeper.receive().text());
        }
        let of_second: Vec<String> = commands.into_iter().filter(|text| text.len() == 3).collect();
        assert_eq!(sorted(of_second), (100..120).map(|number: u32| number.to_string()).collect::<Vec<_>>());
    }
}
