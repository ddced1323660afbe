//! Connects through a proxy: HTTP CONNECT [RFC 9110 section 9.3.6] and SOCKS5 [RFC 1928, 1929].

use std::io;
use std::net::IpAddr;

use base64ct::{Base64, Encoding};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::upstream::settings::Proxy;
use crate::upstream::wire::{BeginStep, Broken};

/// The most bytes of a proxy's answer that are read.
const MOST: usize = 8 << 10;
/// The most ways to sign in that are looked at.
const MOST_SCHEMES: usize = 8;
// the numbers of RFC 1928
const SOCKS: u8 = 5;
const NO_LOGIN: u8 = 0;
const PASSWORD: u8 = 2;
const CONNECT: u8 = 1;
const SOCKS_V4: u8 = 1;
const SOCKS_NAME: u8 = 3;
const SOCKS_V6: u8 = 4;

/// Asks an HTTP proxy for a tunnel.
pub async fn http(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    proxy: &Proxy,
    authority: &str,
) -> Result<(), Broken> {
    let mut request = format!("CONNECT {authority} HTTP/1.1\r\nHost: {authority}\r\n");
    if let Some((user, password)) = &proxy.login {
        let login = Base64::encode_string(format!("{user}:{}", password.expose()).as_bytes());
        request += &format!("Proxy-Authorization: Basic {login}\r\n");
    }
    request += "\r\n";
    stream.write_all(request.as_bytes()).await.map_err(|error| Broken::Failed(error.to_string()))?;
    let mut answer = Vec::new();
    let mut begin = 0;
    loop {
        if answer.len() >= MOST {
            return Err(Broken::Lasting("its answer has no end".into()));
        }
        // the bytes after the answer belong to the upstream
        let closed = |_| Broken::NotBegun(BeginStep::HttpProxy, "it closed the connection".into());
        answer.push(stream.read_u8().await.map_err(closed)?);
        // a single LF ends a line too [RFC 9112 section 2.2]
        if !(answer.ends_with(b"\n\r\n") || answer.ends_with(b"\n\n")) {
            continue;
        }
        // an interim answer comes before the final one [RFC 9110 section 15.2]
        match status(&answer[begin..]) {
            Some(interim) if interim.starts_with('1') => begin = answer.len(),
            _ => break,
        }
    }
    match status(&answer[begin..]) {
        Some(status) if status.starts_with('2') => Ok(()),
        Some("407") => Err(Broken::Lasting(login_refused(&answer[begin..], proxy.login.is_some()))),
        Some(status) => {
            let why = format!("it does not connect to {authority}: HTTP status {status}");
            // of the others some tell that the upstream cannot be reached, which is no fault of the proxy
            Err(if status == "403" { Broken::Lasting(why) } else { Broken::Failed(why) })
        }
        None => Err(Broken::OtherThan(BeginStep::HttpProxy, "what it says is not HTTP".into())),
    }
}

/// What is wrong if a proxy answers 407 [RFC 9110 section 15.5.8]. `had_login` tells that a user name and password were sent.
fn login_refused(answer: &[u8], had_login: bool) -> String {
    let answer = String::from_utf8_lossy(answer);
    let fields = answer.lines().filter_map(|line| line.split_once(':'));
    let offers = fields.filter(|(name, _)| name.eq_ignore_ascii_case("proxy-authenticate"));
    // several schemes may stand in one field, each with parameters behind commas
    let words = offers.flat_map(|(_, value)| value.split(',')).filter_map(|part| part.split_whitespace().next());
    let schemes: Vec<&str> = words.filter(|word| !word.contains('=')).take(MOST_SCHEMES).collect();
    let takes_basic = schemes.is_empty() || schemes.iter().any(|scheme| scheme.eq_ignore_ascii_case("basic"));
    match (takes_basic, had_login) {
        (true, false) => "it wants a user name and password (407): proxy = \"http://USER:PASSWORD@HOST:PORT\"".into(),
        (true, true) => "it does not accept the user name and password of proxy (407)".into(),
        (false, _) => {
            // nothing of an answer may look like a line of the log
            let schemes = schemes.join(", ").escape_debug().to_string();
            format!("it wants another way to sign in than a user name and password (407): {schemes}")
        }
    }
}

/// The three digits of the status at the beginning of an answer.
fn status(answer: &[u8]) -> Option<&str> {
    let line = answer.split(|byte| matches!(byte, b'\r' | b'\n')).next()?;
    let status = std::str::from_utf8(line).ok()?.strip_prefix("HTTP/1.")?.split(' ').nth(1)?;
    Some(status).filter(|status| status.len() == 3 && status.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Asks a SOCKS5 proxy for a connection. The proxy resolves the name.
pub async fn socks5(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    proxy: &Proxy,
    host: &str,
    port: u16,
) -> Result<(), Broken> {
    let methods: &[u8] = if proxy.login.is_some() { &[SOCKS, 2, NO_LOGIN, PASSWORD] } else { &[SOCKS, 1, NO_LOGIN] };
    stream.write_all(methods).await.map_err(socks_closed)?;
    let mut chosen = [0; 2];
    stream.read_exact(&mut chosen).await.map_err(socks_closed)?;
    match (chosen, &proxy.login) {
        ([SOCKS, NO_LOGIN], _) => {}
        ([SOCKS, PASSWORD], Some((user, password))) => socks5_login(stream, user, password.expose()).await?,
        ([SOCKS, _], None) => {
            return lasting("it wants a user name and password: proxy = \"socks5://USER:PASSWORD@HOST:PORT\"");
        }
        ([SOCKS, _], Some(_)) => return lasting("it does not take a user name and password"),
        _ => return Err(not_socks()),
    }
    // some say so that they cannot connect
    let ended =
        |_: io::Error| Broken::Failed(format!("it closes the connection instead of connecting to {host}:{port}"));
    stream.write_all(&socks5_request(host, port)?).await.map_err(ended)?;
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.map_err(ended)?;
    if let Some((why, is_lasting)) = socks5_refusal(answer[1]) {
        let why = format!("it does not connect to {host}:{port}: {why}");
        return Err(if is_lasting { Broken::Lasting(why) } else { Broken::Failed(why) });
    }
    let bound = match answer[3] {
        SOCKS_V4 => 4,
        SOCKS_V6 => 16,
        SOCKS_NAME => usize::from(stream.read_u8().await.map_err(ended)?),
        _ => return Err(not_socks()),
    };
    let mut rest = vec![0; bound + 2];
    stream.read_exact(&mut rest).await.map_err(ended)?;
    Ok(())
}

fn socks_closed(_: io::Error) -> Broken {
    Broken::NotBegun(BeginStep::Socks5, "it closed the connection".into())
}

fn not_socks() -> Broken {
    Broken::OtherThan(BeginStep::Socks5, "what it says is not SOCKS5".into())
}

fn lasting<T>(why: &str) -> Result<T, Broken> {
    Err(Broken::Lasting(why.into()))
}

/// Signs in with a user name and password [RFC 1929].
async fn socks5_login(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    user: &str,
    password: &str,
) -> Result<(), Broken> {
    let mut login = vec![1, user.len() as u8];
    login.extend_from_slice(user.as_bytes());
    login.push(password.len() as u8);
    login.extend_from_slice(password.as_bytes());
    let ended = |_: io::Error| Broken::Failed("it closes the connection at the user name and password".into());
    stream.write_all(&login).await.map_err(ended)?;
    let mut answer = [0; 2];
    stream.read_exact(&mut answer).await.map_err(ended)?;
    if answer[1] == 0 { Ok(()) } else { lasting("it does not accept the user name and password") }
}

/// The request for a connection to this host, whose name the proxy looks up [RFC 1928, 4].
fn socks5_request(host: &str, port: u16) -> Result<Vec<u8>, Broken> {
    let mut request = vec![SOCKS, CONNECT, 0];
    match host.parse() {
        Ok(IpAddr::V4(address)) => {
            request.push(SOCKS_V4);
            request.extend(address.octets());
        }
        Ok(IpAddr::V6(address)) => {
            request.push(SOCKS_V6);
            request.extend(address.octets());
        }
        Err(_) => {
            let length = u8::try_from(host.len()).map_err(|_| Broken::Lasting("the host name is too long".into()))?;
            request.extend([SOCKS_NAME, length]);
            request.extend_from_slice(host.as_bytes());
        }
    }
    request.extend(port.to_be_bytes());
    Ok(request)
}

/// What this answer means if it is a refusal [RFC 1928, 6], and whether another attempt would get the same one.
fn socks5_refusal(answer: u8) -> Option<(&'static str, bool)> {
    Some(match answer {
        0 => return None,
        1 => ("general failure", false),
        2 => ("its rules do not allow it", true),
        3 => ("network unreachable", false),
        4 => ("host unreachable", false),
        5 => ("connection refused", false),
        6 => ("time to live exceeded", false),
        7 => ("it does not know the command", true),
        8 => ("it does not know this kind of address", true),
        _ => ("an unknown failure", false),
    })
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    /// What a proxy with these answers is asked, and the result.
    async fn ask(proxy: &str, host: &str, answers: &[(usize, &[u8])]) -> (Vec<u8>, Result<(), Broken>) {
        let (mut ours, mut theirs) = duplex(4096);
        let proxy = Proxy::parse(proxy).unwrap();
        let answering = async {
            let mut asked = Vec::new();
            for (count, answer) in answers {
                let mut part = vec![0; *count];
                theirs.read_exact(&mut part).await.unwrap();
                asked.extend(part);
                theirs.write_all(answer).await.unwrap();
            }
            drop(theirs);
            asked
        };
        let asking = async {
            match proxy.scheme {
                crate::upstream::settings::ProxyScheme::Http => http(&mut ours, &proxy, &format!("{host}:8883")).await,
                crate::upstream::settings::ProxyScheme::Socks5 => socks5(&mut ours, &proxy, host, 8883).await,
            }
        };
        tokio::join!(answering, asking)
    }

    #[tokio::test]
    async fn http_proxies_are_asked_for_a_tunnel() {
        let request = b"CONNECT h:8883 HTTP/1.1\r\nHost: h:8883\r\n\r\n";
        let (asked, result) =
            ask("http://p", "h", &[(request.len(), b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n")]).await;
        assert_eq!((&asked[..], result), (&request[..], Ok(())));
        for answer in [
            &b"HTTP/1.1 200 OK\n\n"[..],
            b"HTTP/1.1 200\r\n\r\n",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nVia: x\r\n\r\n",
        ] {
            assert_eq!(ask("http://p", "h", &[(request.len(), answer)]).await.1, Ok(()), "{answer:?}");
        }
        // nothing of an answer may look like a line of the log
        let forged = (request.len(), &b"HTTP/1.1 5\x1b[2J03 x\r\n\r\n"[..]);
        assert!(ask("http://p", "h", &[forged]).await.1.unwrap_err().to_string().contains("not HTTP"));
        let with_login = b"CONNECT h:8883 HTTP/1.1\r\nHost: h:8883\r\nProxy-Authorization: Basic bWU6cHc=\r\n\r\n";
        let answer = (with_login.len(), &b"HTTP/1.0 407 Proxy Authentication Required\r\n\r\n"[..]);
        let (asked, result) = ask("http://me:pw@p", "h", &[answer]).await;
        assert_eq!(asked, with_login);
        assert_eq!(result, Err(Broken::Lasting("it does not accept the user name and password of proxy (407)".into())));
        let refused = (request.len(), &b"HTTP/1.1 403 Forbidden\r\n\r\n"[..]);
        assert!(matches!(ask("http://p", "h", &[refused]).await.1, Err(Broken::Lasting(why)) if why.contains("403")));
        let gone = (request.len(), &b"HTTP/1.1 503 Service Unavailable\r\n\r\n"[..]);
        assert!(matches!(ask("http://p", "h", &[gone]).await.1, Err(Broken::Failed(why)) if why.contains("503")));
        let other = (request.len(), &b"SSH-2.0-x\r\n\r\n"[..]);
        assert!(ask("http://p", "h", &[other]).await.1.unwrap_err().to_string().contains("not HTTP"));
    }

    #[test]
    fn advice_about_a_login_fits_what_is_configured_and_what_the_proxy_takes() {
        let answer = |fields: &str| format!("HTTP/1.1 407 x\r\n{fields}\r\n").into_bytes();
        let basic = "Proxy-Authenticate: Basic realm=\"a b\", charset=\"UTF-8\"\r\n";
        let other = "Proxy-Authenticate: Negotiate\r\nproxy-authenticate:NTLM\r\n";
        for (fields, had_login, expected) in [
            ("", false, "http://USER:PASSWORD@"),
            (basic, false, "http://USER:PASSWORD@"),
            (basic, true, "does not accept the user name and password"),
            (other, false, "another way to sign in than a user name and password (407): Negotiate, NTLM"),
            (other, true, "another way to sign in than a user name and password (407): Negotiate, NTLM"),
            ("Proxy-Authenticate: Digest realm=\"x\", nonce=y, Basic realm=\"z\"\r\n", true, "does not accept"),
            ("Proxy-Authenticate: a\x1b[2J\r\n", true, "a\\u{1b}[2J"),
        ] {
            let said = login_refused(&answer(fields), had_login);
            assert!(said.contains(expected), "{fields:?}: {said}");
        }
    }

    #[tokio::test]
    async fn socks5_proxies_look_up_the_name() {
        let done: &[u8] = &[5, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        let (asked, result) = ask("socks5://p", "host", &[(3, &[5, 0]), (11, done)]).await;
        assert_eq!(result, Ok(()));
        assert_eq!(asked, b"\x05\x01\x00\x05\x01\x00\x03\x04host\x22\xb3");
        let (asked, result) = ask("socks5://me:pw@p", "192.0.2.7", &[(4, &[5, 2]), (7, &[1, 0]), (10, done)]).await;
        assert_eq!(result, Ok(()));
        assert_eq!(asked, b"\x05\x02\x00\x02\x01\x02me\x02pw\x05\x01\x00\x01\xc0\x00\x02\x07\x22\xb3");
        let refusal = |code: u8| vec![5, code, 0, 1, 0, 0, 0, 0, 0, 0];
        let (rules, unreachable) = (refusal(2), refusal(5));
        type Kind = fn(String) -> Broken;
        for (answers, kind, expected) in [
            (vec![(3, &[5, 0xff][..])], Broken::Lasting as Kind, "wants a user name"),
            (vec![(3, &[5, 0][..]), (8, &rules)], Broken::Lasting, "rules do not allow"),
            (vec![(3, &[5, 0][..]), (8, &unreachable)], Broken::Failed, "connection refused"),
            (vec![(3, &b"HTTP/1.1 400"[..])], |why| Broken::OtherThan(BeginStep::Socks5, why), "not SOCKS5"),
            (vec![(3, &[][..])], |why| Broken::NotBegun(BeginStep::Socks5, why), "closed the connection"),
        ] {
            let error = ask("socks5://p", "h", &answers).await.1.unwrap_err();
            assert!(error.to_string().contains(expected), "{error}");
            assert_eq!(error, kind(error.to_string()));
        }
    }
}
