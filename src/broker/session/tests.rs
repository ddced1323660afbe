use super::*;
use crate::exchange::inbox::InboxLimits;
use crate::message::Draft;

fn queued(qos: Qos) -> Queued {
    let message = Message::new(&Draft { qos, retain: true, origin: Origin::client("me"), ..Draft::new("a/b", b"x") });
    Queued { message, grant: Grant { qos, retain: false, ids: MatchedIds::default(), share: None } }
}

fn begin(outbound: &mut Outbound, qos: Qos) -> u16 {
    let id = outbound.next_id(&DeliverySource::Live, false);
    outbound.begin(id, queued(qos), DeliverySource::Live);
    id
}

fn resent(outbound: &mut Outbound) -> Vec<String> {
    let mut sent = Vec::new();
    outbound.resend(|send| {
        sent.push(match send {
            Send::Publish { packet_id, dup, .. } => format!("publish {packet_id} {dup}"),
            Send::Release(id) => format!("release {id}"),
        });
    });
    sent
}

#[test]
fn a_new_connection_sends_again_what_was_not_acknowledged() {
    let mut outbound = Outbound::new(4);
    let ids: Vec<u16> = [Qos::AtLeastOnce, Qos::ExactlyOnce, Qos::ExactlyOnce, Qos::AtLeastOnce]
        .map(|qos| begin(&mut outbound, qos))
        .into();
    assert_eq!((ids, outbound.room()), (vec![1, 2, 3, 4], 0));
    assert!(outbound.acknowledged(1).is_some());
    assert!(matches!(outbound.received(2, Reason::SUCCESS), Received::Release(None)));
    assert!(resent(&mut outbound).is_empty(), "not on the same connection");
    outbound.resume(2);
    assert_eq!(resent(&mut outbound), ["release 2", "publish 3 true"]);
    assert!(outbound.has_held() && outbound.room() == 0);
    assert!(outbound.completed(2).is_some());
    assert_eq!(resent(&mut outbound), ["publish 4 true"]);
    assert!(!outbound.has_held());
}

#[test]
fn acknowledgements_must_fit_what_they_acknowledge() {
    let mut outbound = Outbound::new(9);
    begin(&mut outbound, Qos::ExactlyOnce);
    begin(&mut outbound, Qos::AtLeastOnce);
    assert!(outbound.acknowledged(1).is_none(), "PUBACK for QoS 2");
    assert!(outbound.completed(1).is_none(), "PUBCOMP before PUBREC");
    assert!(matches!(outbound.received(2, Reason::SUCCESS), Received::Unknown), "PUBREC for QoS 1");
    assert!(matches!(outbound.received(1, Reason::QUOTA_EXCEEDED), Received::Refused(_)));
    assert!(outbound.acknowledged(9).is_none());
    assert_eq!(outbound.len(), 1);
}

#[test]
fn packet_ids_in_use_are_passed_over() {
    let mut outbound = Outbound::new(u16::MAX);
    begin(&mut outbound, Qos::AtLeastOnce);
    outbound.last_id = u16::MAX;
    assert_eq!(begin(&mut outbound, Qos::AtLeastOnce), 2);
}

#[test]
fn overlapping_subscriptions_grant_one_delivery() {
    let mut session = Session::new("me", 9, None, 0);
    let options = |qos, id| SubscriptionOptions { qos, no_local: false, retain_as_published: id == 2, id: Some(id) };
    session.subscribe("a/#", Subscription { options: options(Qos::AtMostOnce, 1), group: None });
    session.subscribe("a/+", Subscription { options: options(Qos::AtLeastOnce, 2), group: None });
    let grant = session.grant(queued(Qos::ExactlyOnce).message.view(), false).unwrap();
    assert_eq!((grant.qos, grant.retain, grant.ids.as_slice().len()), (Qos::AtLeastOnce, true, 2));
    session.unsubscribe("a/+");
    session.subscribe(
        "a/#",
        Subscription { options: SubscriptionOptions { no_local: true, ..options(Qos::AtLeastOnce, 1) }, group: None },
    );
    assert!(session.grant(queued(Qos::ExactlyOnce).message.view(), false).is_none(), "its own");
}

#[test]
fn two_groups_of_one_filter_are_two_subscriptions() {
    let mut session = Session::new("me", 9, None, 0);
    let options = |qos| SubscriptionOptions { qos, no_local: false, retain_as_published: false, id: None };
    let group = || SharedGroup::new(InboxLimits { messages: 1, bytes: 1 }, None);
    let qos = |session: &Session| session.grant(queued(Qos::ExactlyOnce).message.view(), true).map(|grant| grant.qos);
    for (first, second) in [(Qos::AtLeastOnce, Qos::ExactlyOnce), (Qos::ExactlyOnce, Qos::ExactlyOnce)] {
        session.subscribe("$share/a/a/#", Subscription { options: options(Qos::AtMostOnce), group: Some(group()) });
        session.subscribe("$share/b/a/#", Subscription { options: options(second), group: Some(group()) });
        // another QoS for the first is no change of the second
        session.subscribe("$share/a/a/#", Subscription { options: options(first), group: Some(group()) });
        session.unsubscribe("$share/a/a/#");
        assert_eq!(qos(&session), Some(second));
        session.unsubscribe("$share/b/a/#");
        assert_eq!(qos(&session), None);
    }
}

#[test]
fn what_came_by_a_group_is_for_the_subscription_to_the_group_and_no_other() {
    let mut session = Session::new("me", 9, None, 0);
    let options = |qos, id| SubscriptionOptions { qos, no_local: false, retain_as_published: false, id: Some(id) };
    let group = || Some(SharedGroup::new(InboxLimits { messages: 1, bytes: 1 }, None));
    let granted = |session: &Session, qos, by_group| {
        let grant = session.grant(queued(qos).message.view(), by_group)?;
        Some((grant.qos, grant.ids.as_slice().to_vec()))
    };
    session.subscribe("$share/g/a/#", Subscription { options: options(Qos::AtLeastOnce, 2), group: group() });
    session.subscribe("$share/h/a/+", Subscription { options: options(Qos::ExactlyOnce, 3), group: group() });
    assert_eq!(granted(&session, Qos::ExactlyOnce, false), None, "nothing but groups asks for it");
    for own in [Qos::AtMostOnce, Qos::AtLeastOnce] {
        session.subscribe("a/#", Subscription { options: options(own, 1), group: None });
        assert_eq!(granted(&session, Qos::ExactlyOnce, true), Some((Qos::ExactlyOnce, vec![3])));
        assert_eq!(granted(&session, Qos::ExactlyOnce, false), Some((own, vec![1])));
        assert_eq!(granted(&session, Qos::AtMostOnce, true).unwrap().0, Qos::AtMostOnce);
    }
    session.unsubscribe("$share/h/a/+");
    assert_eq!(granted(&session, Qos::ExactlyOnce, true), Some((Qos::AtLeastOnce, vec![2])));
    session.unsubscribe("$share/g/a/#");
    assert_eq!(granted(&session, Qos::ExactlyOnce, true), None);
}
