//! Guessing passwords is slow, reveals nothing, and does not keep others from signing in.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use super::{PASSWORD, user};
use crate::support::{Connect, Gateway, ReadSome, Setup};

/// A connection from an address of this host's loopback network.
fn from(last: u8, port: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, last), 0)).into()).unwrap();
    socket.connect(&SocketAddr::from((Ipv4Addr::LOCALHOST, port)).into()).unwrap();
    socket.into()
}

/// Guesses that wait for their answers.
struct Flood(Vec<TcpStream>);

impl Flood {
    /// Sends this number of guesses for the same user from the same address.
    fn start(gateway: &Gateway, name: &str, last: u8, count: usize) -> Flood {
        let guess = |number: usize| {
            let mut stream = from(last, gateway.port);
            let connect = Connect::new(&format!("guess-{last}-{number}")).login(name, &format!("guess {number}"));
            // of too many the gateway closes some at once
            let _ = stream.write_all(&connect.encode());
            stream.set_nonblocking(true).unwrap();
            stream
        };
        Flood((0..count).map(guess).collect())
    }

    /// The number of guesses with the answer that the password is wrong, and the number with the answer that the broker is
    /// busy.
    fn answers(&mut self) -> (usize, usize) {
        let (mut wrong, mut busy) = (0, 0);
        self.0.retain_mut(|stream| {
            let mut connack = [0; 4];
            match stream.read_some(&mut connack) {
                Ok(4) if connack[3] == 4 => wrong += 1,
                Ok(4) if connack[3] == 3 => busy += 1,
                Ok(0) => {}
                Ok(_) => panic!("{connack:?}"),
                Err(error) => return error.kind() == ErrorKind::WouldBlock,
            }
            false
        });
        (wrong, busy)
    }
}

/// Signs in from this address of the loopback network and leaves again.
fn comes_and_goes(gateway: &Gateway, name: &str, last: u8) {
    let connect = Connect::new(&format!("{name}'s node")).login(name, PASSWORD);
    let stream = from(last, gateway.port);
    let (mut client, connack) = connect.try_over(Box::new(stream.try_clone().unwrap()), stream);
    assert_eq!(connack.reason, 0, "{name} from 127.0.0.{last}");
    client.ping();
    client.disconnect();
}

fn ada_at_home(gateway: &Gateway) {
    comes_and_goes(gateway, "ada", 1);
}

#[test]
fn a_user_at_home_gets_in_while_others_guess_also_after_a_restart() {
    let mut gateway = Setup::default().config(&(user("ada", "") + &user("bob", ""))).start();
    ada_at_home(&gateway);
    for restart in [false, true] {
        if restart {
            // an orderly end writes the familiar addresses, if they were not written before
            gateway = gateway.end().restart();
        }
        let mut floods: Vec<Flood> = (2..6).map(|last| Flood::start(&gateway, "ada", last, 40)).collect();
        let mut others = Flood::start(&gateway, "nobody", 6, 40);
        ada_at_home(&gateway);
        let wrong: usize = floods.iter_mut().map(|flood| flood.answers().0).sum::<usize>() + others.answers().0;
        assert!(wrong < 60, "the guesses were not waited for: {wrong}");
        assert!(floods.iter().any(|flood| !flood.0.is_empty()), "guesses still wait");
    }
}

#[test]
fn a_right_guess_waits_as_long_as_a_wrong_one() {
    let gateway = Setup::default().config(&user("ada", "")).start();
    ada_at_home(&gateway);
    let mut flood = Flood::start(&gateway, "ada", 2, 60);
    let mut wrong = 0;
    crate::support::wait_until("the first guesses to be answered", || {
        wrong += flood.answers().0;
        wrong >= 10
    });
    // the user is known now, but not from this address
    let right = Connect::new("right").login("ada", PASSWORD);
    let mut stream = from(3, gateway.port);
    stream.write_all(&right.encode()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut connack = [0; 4];
    let answer = stream.read_some(&mut connack);
    assert!(answer.is_err() || wrong + flood.answers().0 > 10, "{answer:?} after {wrong} guesses");
}

#[test]
fn what_is_kept_of_logins_has_no_hash_and_belongs_to_nobody_else() {
    let gateway = Setup::default().config(&user("ada", "")).start();
    ada_at_home(&gateway);
    let ended = gateway.end();
    let text = std::fs::read_to_string(ended.dir().join("data/familiar")).unwrap();
    assert_eq!(text, "ada\t127.0.0.1\n");
}

/// More guesses from one address than a fifth of all that may wait.
const MANY: usize = 230;

#[test]
fn a_user_who_guesses_for_his_own_name_at_home_keeps_no_other_user_out() {
    let gateway = Setup::default().config(&(user("ada", "") + &user("bob", ""))).start();
    ada_at_home(&gateway);
    (2..7).for_each(|last| comes_and_goes(&gateway, "bob", last));
    // otherwise ada's password is remembered and needs no check
    let gateway = gateway.end().restart();
    let mut floods: Vec<Flood> = (2..7).map(|last| Flood::start(&gateway, "bob", last, MANY)).collect();
    ada_at_home(&gateway);
    floods.iter_mut().for_each(|flood| _ = flood.answers());
    assert!(floods.iter().all(|flood| flood.0.len() > MANY / 8), "bob's guesses still wait");
}

#[test]
fn strangers_who_guess_names_from_five_addresses_do_not_keep_others_out() {
    let gateway = Setup::default().config(&user("ada", "")).start();
    let mut floods: Vec<Flood> = (2..7).map(|last| Flood::start(&gateway, "nobody", last, MANY)).collect();
    ada_at_home(&gateway);
    floods.iter_mut().for_each(|flood| _ = flood.answers());
    assert!(floods.iter().all(|flood| flood.0.len() > MANY / 8), "the guesses still wait");
}

#[test]
fn the_place_of_a_client_that_has_gone_ends() {
    let gateway = Setup::default().config(&user("ada", "")).start();
    ada_at_home(&gateway);
    let sockets = || std::fs::read_dir(format!("/proc/{}/fd", gateway.pid())).unwrap().count();
    let before = sockets();
    let flood = Flood::start(&gateway, "nobody", 2, 100);
    crate::support::wait_until("the guesses to wait", || sockets() > before + 60);
    drop(flood);
    // those who wait for a token would have waited for a minute
    crate::support::wait_until("their sockets to be closed", || sockets() < before + 10);
}

#[test]
fn whoever_closes_early_is_answered_or_heard() {
    let rules = "publish = [\"#\"]\nsubscribe = [\"#\"]";
    let users: String = ["ada", "bob", "reader"].iter().map(|name| user(name, rules)).collect();
    let gateway = Setup::default().config(&users).start();
    let mut reader = Connect::new("reader").login("reader", PASSWORD).open(gateway.port);
    reader.subscribe("t", 0);
    // ada's node says what it has to say and is gone before its password has been checked
    let connect = Connect::new("early").login("ada", PASSWORD).encode();
    let packets = [&connect[..], &[0x30, 4, 0, 1, b't', b'x'], &[0xe0, 0]].concat();
    from(2, gateway.port).write_all(&packets).unwrap();
    assert_eq!(reader.receive().payload, b"x");
    // bob's script closes its sending side and waits for the answer
    let mut stream = from(2, gateway.port);
    stream.write_all(&Connect::new("script").login("bob", PASSWORD).encode()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut connack = [0; 4];
    stream.read_exact(&mut connack).unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
}
