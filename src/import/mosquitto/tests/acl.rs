//! Rules that cannot be taken over as they are.

use super::*;

const CONF: &str = "listener 1883\nallow_anonymous true\npassword_file p\nacl_file acl\n";

fn with_rules(users: &[&str], acl: &str) -> Result {
    let passwords: String = users.iter().map(|user| format!("{user}:{HASH}\n")).collect();
    with_files(CONF, &[("p", &passwords), ("acl", acl)])
}

#[test]
fn a_user_name_of_several_levels_is_written_out_where_it_takes_the_place_of_a_pattern() {
    let acl = "pattern readwrite who/%u/+\npattern deny who/%u/private\npattern read end/%c\n";
    let result = with_rules(&["esp", "site/eve", "odd/%c", "a/+", "$SYS/x"], acl);
    let users = result.users();
    let rules = |name: &str| &users.iter().find(|(user, ..)| *user == name).unwrap().1;
    assert_eq!(*rules("esp"), list(&["who/%u/+", "!who/%u/private"]));
    assert_eq!(*rules("site/eve"), list(&["who/site/eve/+", "!who/site/eve/private"]));
    assert_eq!(*rules("$SYS/x"), list(&["who/$SYS/x/+", "!who/$SYS/x/private"]));
    // it would read as another pattern, or is let in nowhere by mosquitto either
    assert_eq!((rules("odd/%c"), rules("a/+")), (rules("esp"), rules("esp")));
    assert!(result.remark("pattern readwrite who/%u/+").contains("whose name has a `/`"), "{}", result.text);
    assert!(result.remark("pattern read end/%c").contains("whose id has a `/`"), "{}", result.text);
    let result = with_rules(&["esp", "site/eve", "a/+"], "pattern readwrite who/%u/+\n");
    assert_eq!(result.summary.differ, 0, "{}", result.text);
    // whoever chooses a name does not open what begins with `$`
    let result = with_rules(&["$SYS/x"], "pattern read %u/#\n");
    assert_eq!(result.users()[0].2, list(&["%u/#"]));
}

#[test]
fn a_topic_that_begins_with_an_exclamation_mark_is_not_taken_for_a_denial() {
    let acl = "user a\ntopic readwrite #\ntopic !urgent\ntopic read !news/#\ntopic deny !secret\n";
    let result = with_rules(&["a"], acl);
    assert_eq!(result.users(), [("a", list(&["#", "!!secret"]), list(&["#", "!!secret"]))]);
    for line in ["topic !urgent", "topic read !news/#"] {
        assert!(result.remark(line).contains("is a denial here"), "{}", result.text);
    }
    // its name may come by a user's name
    let result = with_rules(&["!a/b"], "pattern read %u\n");
    assert_eq!(result.users(), [("!a/b", list(&[]), list(&[]))]);
}

#[test]
fn a_denial_for_everybody_that_narrows_one_user_is_told_although_others_have_it_as_it_was() {
    let acl = "user a\ntopic readwrite a/#\npattern deny a/secret\npattern readwrite a/+\n";
    for users in [&["a"][..], &["esp", "a"], &["a", "esp"]] {
        let result = with_rules(users, acl);
        assert!(result.remark("pattern deny a/secret").contains("denial always wins"), "{}", result.text);
    }
}

#[test]
fn what_is_denied_to_an_id_of_several_levels_stays_denied() {
    let result = with_rules(&["a"], "pattern readwrite all/x/y\npattern deny all/%c\n");
    assert_eq!(result.users()[0].1, list(&["all/x/y", "!all/%c"]));
}
