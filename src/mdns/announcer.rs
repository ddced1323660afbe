//! Decides what to tell Avahi next.
//!
//! All services are announced under one name, and all of them or none. If one of them collides with a service of another
//! host or program, all get the name that Avahi proposes, and keep it until the gateway is restarted.

use super::service::Service;

/// Most names that are tried with one Avahi, so that a host which takes every name cannot keep the gateway busy.
const MOST_NAMES: u32 = 20;

/// An event from Avahi or from the ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AnnouncerEvent {
    /// These services must be announced from now on.
    Wanted(Vec<Service>),
    /// Whether Avahi accepts announcements. It does not while it looks for a name for its host, and by then it has forgotten
    /// ours.
    Running(bool),
    /// Avahi has ended, and its announcements with it.
    Gone,
    /// Another service has this name.
    Collision,
    /// Avahi proposes this name.
    Proposed(String),
    /// The services are announced, and no host has objected to their names.
    Established,
}

/// What the task must do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum MdnsAction {
    /// Announce exactly these services under this name.
    Announce(String, Vec<Service>),
    /// Ask Avahi for another name than this.
    Propose(String),
    /// Stop, and try again much later.
    GiveUp,
}

/// The wanted services, their name, and the progress of their announcement.
#[derive(Clone, Debug)]
pub(super) struct MdnsAnnouncer {
    name: String,
    first_name: String,
    wanted: Vec<Service>,
    is_running: bool,
    /// Whether Avahi has been told and has not refused.
    is_told: bool,
    is_established: bool,
    names_tried: u32,
}

impl MdnsAnnouncer {
    pub(super) fn new(name: String) -> MdnsAnnouncer {
        MdnsAnnouncer {
            first_name: name.clone(),
            name,
            wanted: Vec::new(),
            is_running: false,
            is_told: false,
            is_established: false,
            names_tried: 0,
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The services that are announced. There are none before Avahi confirms them.
    pub(super) fn established(&self) -> &[Service] {
        if self.is_established { &self.wanted } else { &[] }
    }

    pub(super) fn handle(&mut self, event: AnnouncerEvent) -> Option<MdnsAction> {
        match event {
            AnnouncerEvent::Wanted(wanted) if wanted == self.wanted => None,
            AnnouncerEvent::Wanted(wanted) => {
                self.wanted = wanted;
                self.announce()
            }
            AnnouncerEvent::Running(is_running) => {
                let has_come = is_running && !self.is_running;
                self.is_running = is_running;
                if is_running && !has_come {
                    return None;
                }
                self.forgotten();
                self.announce()
            }
            AnnouncerEvent::Gone => {
                self.names_tried = 0;
                self.is_running = false;
                self.forgotten();
                None
            }
            // the answer concerns an announcement that has been replaced
            AnnouncerEvent::Collision | AnnouncerEvent::Established if !self.is_told => None,
            AnnouncerEvent::Collision => {
                self.forgotten();
                self.names_tried += 1;
                if self.names_tried < MOST_NAMES {
                    return Some(MdnsAction::Propose(self.name.clone()));
                }
                self.names_tried = 0;
                self.name.clone_from(&self.first_name);
                Some(MdnsAction::GiveUp)
            }
            AnnouncerEvent::Proposed(name) => {
                self.name = name;
                self.announce()
            }
            AnnouncerEvent::Established => {
                // the number of tried names stays: another host could take each name once it is established, without end
                self.is_established = true;
                None
            }
        }
    }

    fn forgotten(&mut self) {
        (self.is_told, self.is_established) = (false, false);
    }

    fn announce(&mut self) -> Option<MdnsAction> {
        if !self.is_running {
            return None;
        }
        (self.is_told, self.is_established) = (true, false);
        Some(MdnsAction::Announce(self.name.clone(), self.wanted.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::service::ServiceKind;
    use super::*;

    fn services(ports: &[u16]) -> Vec<Service> {
        let service = |port: &u16| Service {
            kind: ServiceKind::Mqtt,
            port: *port,
            names_port: false,
            interface: None,
            family: None,
        };
        ports.iter().map(service).collect()
    }

    fn announce(name: &str, ports: &[u16]) -> Option<MdnsAction> {
        Some(MdnsAction::Announce(name.into(), services(ports)))
    }

    fn announced() -> MdnsAnnouncer {
        let mut announcer = MdnsAnnouncer::new("a".into());
        assert_eq!(announcer.handle(AnnouncerEvent::Wanted(services(&[1]))), None);
        assert_eq!(announcer.established(), []);
        assert_eq!(announcer.handle(AnnouncerEvent::Running(true)), announce("a", &[1]));
        assert_eq!(announcer.established(), []);
        assert_eq!(announcer.handle(AnnouncerEvent::Established), None);
        assert_eq!(announcer.established(), services(&[1]));
        announcer
    }

    #[test]
    fn what_changes_is_announced_and_nothing_twice() {
        let mut announcer = announced();
        assert_eq!(announcer.handle(AnnouncerEvent::Wanted(services(&[1]))), None);
        assert_eq!(announcer.handle(AnnouncerEvent::Running(true)), None);
        assert_eq!(announcer.handle(AnnouncerEvent::Wanted(services(&[1, 2]))), announce("a", &[1, 2]));
        assert_eq!(announcer.established(), [], "not before Avahi says so");
    }

    #[test]
    fn when_avahi_comes_back_it_is_told_again() {
        let mut announcer = announced();
        assert_eq!(announcer.handle(AnnouncerEvent::Gone), None);
        assert_eq!(announcer.established(), []);
        assert_eq!(announcer.handle(AnnouncerEvent::Wanted(services(&[2]))), None);
        assert_eq!(announcer.handle(AnnouncerEvent::Running(true)), announce("a", &[2]));
        // the host gets another name
        assert_eq!(announcer.handle(AnnouncerEvent::Running(false)), None);
        assert_eq!(announcer.handle(AnnouncerEvent::Running(true)), announce("a", &[2]));
    }

    #[test]
    fn a_name_that_is_taken_is_changed_for_all_and_kept() {
        let mut announcer = announced();
        assert_eq!(announcer.handle(AnnouncerEvent::Collision), Some(MdnsAction::Propose("a".into())));
        assert_eq!(announcer.established(), []);
        // Avahi reports the same collision once more, or one from before
        assert_eq!(announcer.handle(AnnouncerEvent::Collision), None);
        assert_eq!(announcer.handle(AnnouncerEvent::Established), None);
        assert_eq!(announcer.established(), []);
        assert_eq!(announcer.handle(AnnouncerEvent::Proposed("a #2".into())), announce("a #2", &[1]));
        assert_eq!(announcer.handle(AnnouncerEvent::Established), None);
        assert_eq!((announcer.name(), announcer.established().len()), ("a #2", 1));
        assert_eq!(announcer.handle(AnnouncerEvent::Gone), None);
        assert_eq!(announcer.handle(AnnouncerEvent::Running(true)), announce("a #2", &[1]));
    }

    #[test]
    fn somebody_who_takes_every_name_does_not_keep_us_busy() {
        for is_established_first in [false, true] {
            let mut announcer = announced();
            let mut tried = 0;
            while announcer.handle(AnnouncerEvent::Collision) != Some(MdnsAction::GiveUp) {
                tried += 1;
                assert!(tried < 100);
                announcer.handle(AnnouncerEvent::Proposed(format!("a #{tried}")));
                if is_established_first {
                    announcer.handle(AnnouncerEvent::Established);
                }
            }
            assert_eq!((tried, announcer.name()), (MOST_NAMES - 1, "a"));
        }
    }
}
