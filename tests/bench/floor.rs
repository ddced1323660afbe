//! The least that the kernel makes any broker pay for a message: one `epoll_wait`, one read, and one write for each
//! subscriber and for the acknowledgement. Nothing is parsed or matched: every subscriber gets every message.
//!
//! It takes for granted that each read returns exactly one packet, which is so at a light load, and that no packet has more
//! than 127 bytes.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};

/// Serves at this port for the rest of the process.
pub fn serve(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    let epoll = epoll::create(CreateFlags::CLOEXEC)?;
    let key = |fd: &dyn AsRawFd| fd.as_raw_fd() as u64;
    epoll::add(&epoll, &listener, EventData::new_u64(key(&listener)), EventFlags::IN)?;
    let mut clients: HashMap<u64, TcpStream> = HashMap::new();
    let mut subscribers: Vec<u64> = Vec::new();
    let mut events = Vec::with_capacity(64);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        events.clear();
        epoll::wait(&epoll, spare_capacity(&mut events), None)?;
        for event in &events {
            let who = event.data.u64();
            if who == key(&listener) {
                let (client, _) = listener.accept()?;
                client.set_nodelay(true)?;
                epoll::add(&epoll, &client, EventData::new_u64(key(&client)), EventFlags::IN)?;
                clients.insert(key(&client), client);
                continue;
            }
            let Some(mut client) = clients.get(&who) else { continue };
            let len = client.read(&mut buffer).unwrap_or(0);
            let packet = &buffer[..len];
            match packet.first().map_or(14, |first| first >> 4) {
                1 => client.write_all(&[0x20, 2, 0, 0])?,
                8 => {
                    subscribers.push(who);
                    client.write_all(&[0x90, 3, packet[2], packet[3], packet[len - 1]])?;
                }
                3 => {
                    subscribers
                        .iter()
                        .filter_map(|who| clients.get(who))
                        .try_for_each(|mut to| to.write_all(packet))?;
                    if packet[0] & 6 != 0 {
                        let id_at = 4 + usize::from(u16::from_be_bytes([packet[2], packet[3]]));
                        client.write_all(&[0x40, 2, packet[id_at], packet[id_at + 1]])?;
                    }
                }
                14 => {
                    subscribers.retain(|other| *other != who);
                    clients.remove(&who);
                }
                _ => {}
            }
        }
    }
}
