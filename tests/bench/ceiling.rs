//! A server that only copies packets. The rate of the load generator with this server is the highest that it could show for
//! any broker. The server delivers every published message unchanged to every subscriber, and acknowledges at once.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedWriteHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{LocalSet, spawn_local};

use super::support::wire::packets;

/// The number of unread bytes of a subscriber from which on publishers wait.
const BEHIND: usize = 1 << 20;

#[derive(Default)]
struct Outbox {
    bytes: RefCell<BytesMut>,
    filled: Notify,
    drained: Notify,
}

type Outboxes = Rc<RefCell<Vec<Rc<Outbox>>>>;

/// Starts the server on a thread of its own, for the rest of the process, and returns its port.
pub fn start() -> io::Result<u16> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    std::thread::spawn(move || {
        LocalSet::new().block_on(&runtime, async move {
            let listener = TcpListener::from_std(listener)?;
            let subscribers = Outboxes::default();
            loop {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                spawn_local(serve(stream, subscribers.clone()));
            }
            #[allow(unreachable_code)]
            io::Result::Ok(())
        })
    });
    Ok(port)
}

async fn serve(stream: TcpStream, subscribers: Outboxes) {
    let (mut reader, writer) = stream.into_split();
    let own = Rc::new(Outbox::default());
    let writing = spawn_local(write(writer, own.clone()));
    let mut input = BytesMut::new();
    loop {
        input.reserve(256 * 1024);
        match reader.read_buf(&mut input).await {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let (mut published, mut ended) = (BytesMut::new(), false);
        packets(&mut input, |packet| {
            let mut answer = own.bytes.borrow_mut();
            match packet.first >> 4 {
                1 => answer.put_slice(&[0x20, 2, 0, 0]),
                8 => {
                    answer.put_slice(&[0x90, 3, 0, 1, packet.body[packet.body.len() - 1]]);
                    subscribers.borrow_mut().push(own.clone());
                }
                3 => {
                    published.put_slice(packet.bytes);
                    if packet.qos() > 0 {
                        answer.put_slice(&[if packet.qos() == 1 { 0x40 } else { 0x50 }, 2]);
                        answer.put_u16(packet.publish_id());
                    }
                }
                // PUBREL from a publisher, and PUBREC from a subscriber
                kind @ (5 | 6) => {
                    answer.put_slice(&[if kind == 6 { 0x70 } else { 0x62 }, 2]);
                    answer.put_u16(packet.ack_id());
                }
                other => ended |= other == 14,
            }
        });
        own.filled.notify_one();
        if !published.is_empty() {
            distribute(&subscribers, &published).await;
        }
        if ended {
            break;
        }
    }
    subscribers.borrow_mut().retain(|other| !Rc::ptr_eq(other, &own));
    writing.abort();
}

async fn distribute(subscribers: &Outboxes, published: &[u8]) {
    let all = subscribers.borrow().clone();
    for subscriber in all {
        while subscriber.bytes.borrow().len() > BEHIND {
            subscriber.drained.notified().await;
        }
        subscriber.bytes.borrow_mut().put_slice(published);
        subscriber.filled.notify_one();
    }
}

async fn write(mut stream: OwnedWriteHalf, outbox: Rc<Outbox>) {
    loop {
        let bytes = outbox.bytes.borrow_mut().split();
        if bytes.is_empty() {
            outbox.filled.notified().await;
        } else if stream.write_all(&bytes).await.is_err() {
            // publishers that wait for this subscriber must not wait for ever
            outbox.drained.notify_waiters();
            return;
        }
        outbox.drained.notify_waiters();
    }
}
