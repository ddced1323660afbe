use super::*;

const WITH_USERS: Bounds = Bounds { most: 256, has_users: true };
const WITHOUT_USERS: Bounds = Bounds { most: 256, has_users: false };

fn guest(from: &str) -> Newcomer<'static> {
    Newcomer { user: None, from: from.parse().unwrap(), session: None, is_returning: false, is_unknown: false }
}

fn user<'a>(name: &'a str, from: &str) -> Newcomer<'a> {
    Newcomer { user: Some(name), ..guest(from) }
}

/// Takes places for this newcomer until none is free without taking one of its own.
fn fill(places: &Arc<Places>, newcomer: &Newcomer<'_>, bounds: Bounds) -> Vec<Place> {
    (0..1000).map_while(|_| places.enter(newcomer, bounds).ok()).collect()
}

fn left(places: &[Place]) -> usize {
    places.iter().filter(|place| !place.is_cut()).count()
}

#[test]
fn without_users_guests_have_all_but_eight_and_a_network_three_quarters_of_them() {
    let places: Arc<Places> = Arc::default();
    let one = fill(&places, &guest("192.0.2.1"), WITHOUT_USERS);
    assert_eq!(one.len(), 186);
    // all addresses of an IPv6 network count as one network
    let two = fill(&places, &guest("2001:db8::1"), WITHOUT_USERS);
    assert_eq!((two.len(), left(&one)), (124, 124), "whoever has most gives way until both have the same");
    assert!(places.enter(&guest("2001:db8::2:1"), WITHOUT_USERS).is_err());
    assert_eq!(places.len(), 248);
    let third = places.enter(&guest("2001:db8:0:1::1"), WITHOUT_USERS).unwrap();
    assert_eq!((left(&one) + left(&two), places.len()), (247, 248));
    // this host gets the rest
    let local = fill(&places, &guest("127.0.0.1"), WITHOUT_USERS);
    assert!(local.len() >= 8 && !third.is_cut());
}

#[test]
fn this_host_may_take_all_places_that_nobody_else_wants() {
    let places: Arc<Places> = Arc::default();
    let local = fill(&places, &guest("::1"), WITHOUT_USERS);
    assert_eq!(local.len(), 256);
    let other = fill(&places, &guest("192.0.2.1"), WITHOUT_USERS);
    assert!(left(&other) >= 100 && left(&local) >= 100, "{} and {}", left(&other), left(&local));
    // guests on the network never get into the share of this host
    let places: Arc<Places> = Arc::default();
    let networks: Vec<Place> = (0..400u32)
        .filter_map(|number| {
            places.enter(&guest(&format!("10.0.{}.{}", number / 250, number % 250)), WITHOUT_USERS).ok()
        })
        .collect();
    assert_eq!(networks.len(), 248);
    let local = fill(&places, &guest("127.0.0.1"), WITHOUT_USERS);
    assert_eq!((local.len(), left(&networks)), (8, 248));
    assert!(places.enter(&guest("192.0.2.9"), WITHOUT_USERS).is_err(), "nobody has more than another");
    assert_eq!(left(&local), 8);
}

#[test]
fn guests_cannot_take_the_places_of_users() {
    let places: Arc<Places> = Arc::default();
    let mut guests: Vec<Place> = Vec::new();
    for network in 0..10 {
        guests.extend(fill(&places, &guest(&format!("192.0.2.{network}")), WITH_USERS));
    }
    guests.retain(|place| !place.is_cut());
    assert_eq!(guests.len(), 184);
    let ada = fill(&places, &user("ada", "192.0.2.1"), WITH_USERS);
    assert_eq!((ada.len(), left(&guests)), (124, 124), "as many as all guests together");
    let bob = fill(&places, &user("bob", "192.0.2.1"), WITH_USERS);
    assert_eq!(bob.len(), 83);
    assert_eq!((left(&ada), left(&guests)), (83, 82));
    let carol = places.enter(&user("carol", "192.0.2.1"), WITH_USERS).unwrap();
    assert!(places.enter(&guest("192.0.2.200"), WITH_USERS).is_ok_and(|_| !carol.is_cut()));
    assert!(left(&fill(&places, &user("ada", "127.0.0.1"), WITH_USERS)) >= 8, "the share of this host");
}

#[test]
fn a_guest_never_takes_the_place_of_a_user() {
    let places: Arc<Places> = Arc::default();
    let ada = fill(&places, &user("ada", "192.0.2.1"), WITH_USERS);
    assert_eq!(ada.len(), 248);
    assert!(places.enter(&guest("192.0.2.2"), WITH_USERS).is_err());
    assert!(places.enter(&guest("127.0.0.1"), WITH_USERS).is_ok());
    let bob = places.enter(&user("bob", "192.0.2.2"), WITH_USERS).unwrap();
    assert_eq!((left(&ada), bob.is_cut()), (247, false));
    assert!(ada.last().unwrap().is_cut(), "the last to come");
}

#[test]
fn a_client_that_comes_back_goes_before_strangers() {
    let places: Arc<Places> = Arc::default();
    let returning = |from: &str, session| Newcomer { session: Some(session), is_returning: true, ..guest(from) };
    let strangers: Vec<Place> =
        (0..248).map(|number| places.enter(&guest(&format!("10.0.0.{number}")), WITHOUT_USERS).unwrap()).collect();
    assert!(places.enter(&guest("192.0.2.1"), WITHOUT_USERS).is_err());
    let back = places.enter(&returning("192.0.2.1", "a"), WITHOUT_USERS).unwrap();
    assert_eq!(left(&strangers), 247);
    // the client's next connection shares the place of this one
    let again = places.enter(&returning("192.0.2.1", "a"), WITHOUT_USERS).unwrap();
    assert_eq!((left(&strangers), places.len()), (247, 248));
    assert!(back.replaced.is_cancelled() && !again.is_cut());
    drop(back);
    assert_eq!(places.len(), 248, "the other has it still");
    drop(again);
    assert_eq!(places.len(), 247);
    // the same holds within the client's own network
    let places: Arc<Places> = Arc::default();
    let strangers = fill(&places, &guest("192.0.2.1"), WITHOUT_USERS);
    assert!(places.enter(&returning("192.0.2.1", "b"), WITHOUT_USERS).is_ok());
    assert_eq!(left(&strangers), 185);
}

#[test]
fn a_user_with_few_connections_takes_the_place_of_the_user_with_most() {
    let places: Arc<Places> = Arc::default();
    let ada = fill(&places, &user("ada", "127.0.0.1"), WITH_USERS);
    assert_eq!(ada.len(), 256);
    let bob = fill(&places, &user("bob", "192.0.2.2"), WITH_USERS);
    assert!(bob.len().abs_diff(left(&ada)) < 10, "{} and {}", bob.len(), left(&ada));
}

#[test]
fn http_connections_are_strangers_until_they_show_a_password() {
    let places: Arc<Places> = Arc::default();
    let bounds = Bounds { most: 80, has_users: true };
    let unknown = |from: &str| Newcomer { is_unknown: true, ..guest(from) };
    let mut flood: Vec<Place> = (0..500).map(|_| places.enter(&unknown("192.0.2.1"), bounds).unwrap()).collect();
    assert_eq!(left(&flood), bounds.of_network(), "whoever opens more loses the oldest of its own");
    assert!(flood[0].is_cut() && !flood[499].is_cut());
    let ada = places.enter(&unknown("192.0.2.1"), bounds).unwrap();
    ada.belongs_to("ada");
    flood.extend((0..500).map(|_| places.enter(&unknown("192.0.2.1"), bounds).unwrap()));
    let other = places.enter(&unknown("192.0.2.2"), bounds).unwrap();
    flood.extend((0..500).map(|_| places.enter(&unknown("192.0.2.1"), bounds).unwrap()));
    let local = places.enter(&unknown("::1"), bounds).unwrap();
    assert!(!ada.is_cut() && !other.is_cut() && !local.is_cut());
    // users cannot take the places of those who have not signed in yet
    let users: Vec<Place> = (0..200)
        .map(|_| {
            let place = places.enter(&unknown("192.0.2.3"), bounds).unwrap();
            place.belongs_to("bob");
            place
        })
        .collect();
    assert!(!ada.is_cut() && left(&users) <= bounds.common() - OF_NEWCOMERS);
    assert!(places.enter(&unknown("192.0.2.4"), bounds).is_ok_and(|place| !place.is_cut()));
}

#[test]
fn whoever_has_its_own_way_to_end_is_told() {
    let places: Arc<Places> = Arc::default();
    let bounds = Bounds { most: 4, has_users: true };
    let (told, count) = (Arc::new(std::sync::atomic::AtomicUsize::new(0)), std::sync::atomic::Ordering::Relaxed);
    let guests = fill(&places, &guest("127.0.0.1"), bounds);
    assert_eq!(guests.len(), 3);
    for place in &guests {
        let told = told.clone();
        place.on_cut(move || {
            told.fetch_add(1, count);
        });
    }
    let ada = fill(&places, &user("ada", "127.0.0.1"), bounds);
    assert_eq!((ada.len(), told.load(count)), (2, 1));
    let late = told.clone();
    guests[2].on_cut(move || {
        late.fetch_add(10, count);
    });
    assert_eq!(told.load(count), 11, "it had been cut before");
}

#[test]
fn connections_of_one_session_share_a_place() {
    let places: Arc<Places> = Arc::default();
    let bounds = Bounds { most: 1, has_users: false };
    let newcomer = |from: &str| Newcomer { session: Some("s"), ..guest(from) };
    let old = places.enter(&newcomer("192.0.2.1"), bounds).unwrap();
    let new = places.enter(&newcomer("192.0.2.2"), bounds).expect("the house is full, but it has a place");
    assert!(!old.is_cut() && !new.is_cut() && places.len() == 1);
    assert!(old.replaced.is_cancelled() && !new.replaced.is_cancelled(), "the older one need not wait for anything");
    let (told, count) = (Arc::new(std::sync::atomic::AtomicUsize::new(0)), std::sync::atomic::Ordering::Relaxed);
    for place in [&old, &new] {
        let told = told.clone();
        place.on_cut(move || _ = told.fetch_add(1, count));
    }
    // the remaining connection keeps the place
    drop(new);
    assert!(places.len() == 1 && places.enter(&guest("192.0.2.3"), bounds).is_err());
    assert_eq!(told.load(count), 0);
    // and it gives way like any other
    let user = places.enter(&user("ada", "192.0.2.4"), bounds).unwrap();
    assert_eq!((old.is_cut(), told.load(count)), (true, 1), "those who have gone are not told");
    drop((old, user));
    assert!(places.is_empty() && places.state.lock().by_session.is_empty());
}
