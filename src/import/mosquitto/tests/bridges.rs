//! What becomes of bridges.

use super::*;

#[test]
fn a_bridge_becomes_an_upstream() {
    let conf = "listener 1883\nconnection to-cloud\naddress cloud.example.org:8883 192.0.2.9 # both\nround_robin true\n\
                bridge_cafile /etc/ssl/ca.crt\nbridge_certfile /etc/c.crt\nbridge_keyfile /etc/c.key\nremote_clientid loft\n\
                username u\nremote_password p a s s # not a comment\ncleansession false\nkeepalive_interval 3\nstart_type automatic\n\
                try_private false\nnotifications true\nnotification_topic sites/loft/state\nrestart_timeout 5 30\n\
                bridge_protocol_version mqttv50\nbridge_attempt_unsubscribe true\nbridge_outgoing_retain true\n\
                topic sensors/# out 1 loft/ sites/loft/\ntopic cmd/# in 2 \"\" remote/\ntopic # both 2 \"\" remote/x/\ntopic \"\" out 0 here there\n\
                topic plain\n";
    let result = of(conf);
    let upstream = &result.settings.upstreams[0];
    assert_eq!(upstream.name, "to-cloud");
    let addresses: Vec<String> = upstream.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["mqtts://cloud.example.org:8883", "mqtts://192.0.2.9:1883"]);
    assert_eq!((upstream.client_id.as_str(), upstream.username.as_deref()), ("loft", Some("u")));
    assert_eq!(result.secrets, [("to-cloud.password".to_owned(), "p a s s # not a comment".to_owned())]);
    assert!(!result.text.contains("p a s s"));
    assert_eq!((upstream.clean_session, upstream.keep_alive), (false, Duration::from_secs(5)));
    assert_eq!((upstream.protocol, upstream.status_topic.as_deref()), (Protocol::V5, Some("sites/loft/state")));
    assert_eq!(upstream.tls.as_ref().unwrap().ca.as_deref(), Some(Path::new("/etc/ssl/ca.crt")));
    let out: Vec<_> = upstream
        .out
        .iter()
        .map(|rule| (&*rule.topic_filter, &*rule.local_prefix, &*rule.remote_prefix, rule.qos))
        .collect();
    assert_eq!(
        out,
        [
            ("sensors/#", "loft/", "sites/loft/", OutQos::AtLeastOnce),
            ("", "here", "there", OutQos::AtMostOnce),
            ("plain", "", "", OutQos::AtMostOnce)
        ]
    );
    let inbound = &upstream.inbound[0];
    assert_eq!((&*inbound.topic_filter, &*inbound.local_prefix, &*inbound.remote_prefix), ("cmd/#", "", "remote/"));
    assert_eq!(inbound.qos, Qos::ExactlyOnce);
    assert_eq!((&*upstream.both[0].topic_filter, &*upstream.both[0].remote_prefix), ("#", "remote/x/"));
}

#[test]
fn bridges_that_mosquitto_would_refuse_or_that_lose_their_protection_are_left_out() {
    for (bridge, why) in [
        ("connection a\naddress h\n", "topics"),
        ("connection a\ntopic # out\n", "address"),
        ("connection a\naddress h\ntopic # out\nbridge_psk 00\nbridge_identity x\n", "pre-shared"),
        ("connection a\naddress h\ntopic # out\nbridge_cafile /ca\nbridge_require_ocsp true\n", "revoked"),
        ("connection a\naddress h:0\ntopic # out\n", "address"),
        ("connection a\naddress h\ntopic # sideways\n", "topics"),
        ("connection a\naddress h\ntopic # out 3\n", "topics"),
        ("connection a\naddress h\ntopic \"\" out 1 x\n", "topics"),
        ("connection a\naddress h\ntopic # out 1 x/+/ y\n", "topics"),
    ] {
        let result = of(&format!("listener 1883\n{bridge}"));
        assert!(result.settings.upstreams.is_empty(), "{bridge}");
        assert!(result.remark("connection a").contains(why), "{bridge}: {}", result.text);
        assert!(!result.text.contains("bridge_psk 00"));
    }
}

#[test]
fn bridges_keep_their_ids_apart_and_loops_need_version_5() {
    let conf = "connection a\naddress h\ntopic # both\nbridge_protocol_version mqttv311\nconnection b c\naddress h\ntopic x/# out\n\
                bridge_protocol_version mqttv31\nnotifications false\nremote_password x\nbridge_insecure true\n";
    let result = of(conf);
    let [a, b] = result.settings.upstreams.as_slice() else { panic!("two") };
    assert_eq!((a.client_id.as_str(), b.client_id.as_str()), ("attic.a", "attic.b"));
    // what the second sends, the first brings back
    assert_eq!((a.protocol, a.v5_only, b.protocol, b.v5_only), (Protocol::Auto, true, Protocol::Auto, true));
    let apart = of(&conf.replacen("address h", "address g", 1));
    let [a, b] = apart.settings.upstreams.as_slice() else { panic!("two") };
    assert_eq!((a.protocol, a.v5_only, b.protocol), (Protocol::Auto, true, Protocol::V4));
    assert!(result.remark("remote_password (hidden)").contains("remote_username"));
    assert!(result.secrets.is_empty());
    assert!(result.remark("bridge_insecure true").contains("no TLS"));
    // an empty value counts as missing
    assert!(of("connection\naddress h\ntopic # out\n").text.contains("missing"));
}

#[test]
fn the_application_protocol_of_a_bridge_is_asked_for() {
    let conf = "listener 1883\nconnection aws\naddress abc-ats.iot.eu-west-1.amazonaws.com:443\nbridge_alpn x-amzn-mqtt-ca\n\
                bridge_cafile /ca.pem\nbridge_certfile /s.pem\nbridge_keyfile /s.key\ntopic loft/# out 1\n";
    let result = of(conf);
    assert_eq!(result.settings.upstreams[0].tls.as_ref().unwrap().alpn, ["x-amzn-mqtt-ca"], "{}", result.text);
    assert!(!result.text.contains("\"bridge_alpn"), "{}", result.text);
}

#[test]
fn a_bridge_that_would_disconnect_another_or_cannot_say_who_it_is_is_left_out() {
    let bridge = |name: &str, address: &str, more: &str| {
        format!("connection {name}\naddress {address}\n{more}\ntopic a/# out 0\n")
    };
    let (site, one) = ("remote_clientid site", "192.0.2.1:1883");
    for (second, is_there) in [
        (bridge("b", one, site), false),
        (bridge("b", "192.0.2.2 192.0.2.1", site), false),
        (bridge("b", one, &format!("{site}\nbridge_cafile /ca")), false),
        (bridge("b", "192.0.2.1:1884", site), true),
        (bridge("b", one, "remote_clientid other"), true),
        (bridge("b", one, ""), true),
        (bridge("b", one, "remote_clientid a\tb"), false),
        (bridge("b", one, "remote_username a\tb"), false),
        (bridge("b", one, &format!("bridge_cafile /ca\nbridge_alpn {}", "x".repeat(256))), false),
    ] {
        let result = of(&format!("listener 1883\n{}{second}", bridge("a", one, site)));
        let names: Vec<&str> = result.settings.upstreams.iter().map(|upstream| upstream.name.as_str()).collect();
        assert_eq!(names, if is_there { &["a", "b"][..] } else { &["a"] }, "{second}\n{}", result.text);
        assert_eq!(result.summary.to_do.iter().any(|item| item.contains("left out")), !is_there, "{second}");
    }
    // without ids of their own, connections of one name have one id
    let result = of(&format!("listener 1883\n{}{}", bridge("a", one, ""), bridge("a", one, "")));
    assert_eq!(result.settings.upstreams.len(), 1, "{}", result.text);
}
