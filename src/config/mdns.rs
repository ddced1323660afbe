//! Reads `[mdns]`.

use super::document::{Table, assign};
use crate::mdns::settings::MdnsSettings;

pub(super) fn read(root: &Table) -> MdnsSettings {
    let mut settings = MdnsSettings::default();
    let Some(table) = root.table("mdns") else { return settings };
    assign(&mut settings.enabled, table.get("enabled").and_then(|value| value.switch()));
    table.finish();
    settings
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::file::Loaded;
    use super::super::{ConfigProblems, read};
    use crate::config::Environment;
    use crate::config::reload::Reload;

    fn parse(text: &str) -> Result<Loaded, ConfigProblems> {
        read(text, Path::new("t.toml"), &Environment::current())
    }

    #[test]
    fn it_is_on_unless_somebody_says_otherwise_and_a_reload_changes_it() {
        let on = parse("").unwrap().settings;
        let off = parse("[mdns]\nenabled = false").unwrap().settings;
        assert!(on.mdns.enabled && !off.mdns.enabled);
        let reload = Reload::plan(&on, &off);
        assert!(reload.restart.is_empty() && reload.settings == off, "{:?}", reload.restart);
        let problems = parse("[mdns]\nenabled = \"no\"\nname = \"x\"").unwrap_err().to_string();
        assert!(problems.contains("t.toml:2:11: mdns.enabled") && problems.contains("mdns.name"), "{problems}");
    }
}
