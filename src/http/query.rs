//! Percent-encoding in paths and query strings.

use axum::http::Uri;

use super::problem::HttpProblem;
use crate::net::percent;

/// Decodes `%XX`; in a query, also `+` as a space.
pub(crate) fn decode(text: &str, is_query: bool) -> Result<String, HttpProblem> {
    percent::decode(text, is_query).map_err(|problem| HttpProblem::bad_request(problem.to_string()))
}

/// The query parameters of a request, in order.
#[derive(Clone, Debug)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Parses the query. A parameter that is not in `known` is an error, because it would otherwise be ignored without
    /// notice.
    pub(crate) fn parse(uri: &Uri, known: &[&str]) -> Result<Query, HttpProblem> {
        let mut pairs = Vec::new();
        for pair in uri.query().unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name, true)?;
            if !known.contains(&name.as_str()) {
                let known = known.join(", ");
                return Err(HttpProblem::bad_request(format!("unknown parameter \"{name}\"; known: {known}")));
            }
            pairs.push((name, decode(value, true)?));
        }
        Ok(Query(pairs))
    }

    /// The value of a parameter that may be given once.
    pub(crate) fn get<'a>(&'a self, name: &str) -> Result<Option<&'a str>, HttpProblem> {
        let mut values = self.all(name);
        match (values.next(), values.next()) {
            (value, None) => Ok(value),
            _ => Err(HttpProblem::bad_request(format!("parameter \"{name}\" is given twice"))),
        }
    }

    pub(crate) fn all<'a, 'n>(&'a self, name: &'n str) -> impl Iterator<Item = &'a str> + use<'a, 'n> {
        self.0.iter().filter(move |(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The value of a parameter as read by `read`, which returns `None` if it is not valid.
    pub(crate) fn parsed<T>(
        &self,
        name: &str,
        valid: &str,
        read: impl Fn(&str) -> Option<T>,
    ) -> Result<Option<T>, HttpProblem> {
        let Some(text) = self.get(name)? else { return Ok(None) };
        let value =
            read(text).ok_or_else(|| HttpProblem::bad_request(format!("parameter \"{name}\" must be {valid}")))?;
        Ok(Some(value))
    }

    /// A parameter with yes or no; the name without a value means yes.
    pub(crate) fn flag(&self, name: &str) -> Result<bool, HttpProblem> {
        let read = |text: &str| match text {
            "true" | "1" | "" => Some(true),
            "false" | "0" => Some(false),
            _ => None,
        };
        Ok(self.parsed(name, "true or false", read)?.unwrap_or(false))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_character_can_be_written() {
        assert_eq!(decode("a%2Fb%252F%C3%BC+%20..", false).unwrap(), "a/b%2Fü+ ..");
        assert_eq!(decode("a+b%2B", true).unwrap(), "a b+");
        for bad in ["%", "%2", "%zz", "%ff"] {
            assert!(decode(bad, false).is_err(), "{bad}");
        }
    }

    #[test]
    fn parameters_are_checked() {
        let query = |uri: &'static str| Query::parse(&Uri::from_static(uri), &["qos", "retain"]);
        assert!(query("/?qos=1&retain").unwrap().flag("retain").unwrap());
        assert!(!query("/?qos=1").unwrap().flag("retain").unwrap());
        assert!(query("/?retain=maybe").unwrap().flag("retain").is_err());
        assert!(query("/?Qos=1").is_err());
        assert!(query("/?qos=1&qos=2").unwrap().get("qos").is_err());
    }
}
