//! Fuzz targets: every parser of bytes from outside. None panics, overflows or takes long, whatever it is given, and what
//! it accepts is what it says it is. `make fuzz` runs each for a minute.

use gateway::fuzz as doors;
use gateway::state::overrides::{flatten, lay_over};
use policy::Policy;
use policy::rules::authenticate::token::Token;
use policy::values::path::{EncodedSlash, normalise};
use tests::mutate::fuzz;

const POLICY: &str = include_str!("../../../config/policy.toml");

const SMALL: &str = "version = 1\n[limits.a]\nkey = [\"ip\", \"header:x\"]\nrate = \"5/min\"\nburst = 9\n[requests]\n\
    max_body = \"1MB\"\nrequest_timeout = \"30s\"\n[blocks]\ndeny = [\"::ffff:192.0.2.0/120\"]\n[jwt.a]\n\
    algorithms = [\"ES256\"]\njwks = \"http://a/\"\nforward = { sub = \"x-user\" }\n[breakers.b]\nerror_rate = 0.5\n[[routes]]\n\
    name = \"a\"\npath = \"/v1/{a}/{*b}\"\nupstream = \"b\"\nlimits = [\"a\"]\nauth = [\"jwt:a\"]\npermission = \"p\"\n\
    resource = \"{a}:{b}\"\n[[tests]]\nrequest = \"GET /v1/x/y\"\nsubject = \"s\"\ngranted = [\"p\"]\nexpect = { status = 401 }\n";

const HTTP_WORDS: [&str; 22] = [
    "\r\n",
    "\n",
    "\r",
    "\r\n\r\n",
    " ",
    "\t",
    ":",
    "\0",
    "GET ",
    "CONNECT ",
    "HTTP/1.1",
    "HTTP/1.0",
    "Host: a",
    "chunked",
    "Transfer-Encoding: chunked\r\n",
    "Content-Length: 1\r\n",
    "content_length: 1\r\n",
    "Upgrade: websocket\r\n",
    "Connection: upgrade\r\n",
    "%2F",
    "/../",
    "http://a/",
];

#[test]
fn request_head() {
    let seeds: [&[u8]; 4] = [
        b"GET /a?b HTTP/1.1\r\nHost: a.example\r\nX-Y: z\r\n\r\n",
        b"POST http://a.example/x HTTP/1.1\r\nHost: a.example\r\nContent-Length: 3\r\n\r\nabc",
        b"POST / HTTP/1.1\r\nHost: [::1]:8080\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n",
    ];
    fuzz("request-head", &seeds, &HTTP_WORDS, doors::request_head);
}

#[test]
fn chunked_body() {
    let seeds: [&[u8]; 3] = [
        b"5\r\nhello\r\n0\r\n\r\n",
        b"a;x=\"y\"\r\n0123456789\r\n0\r\nTrailer: v\r\n\r\n",
        b"ffffffffffffffff\r\n",
    ];
    fuzz(
        "chunked-body",
        &seeds,
        &["\r\n", "\n", ";", "0\r\n\r\n", "FFFFFFFF", " ", "\t", "\0"],
        doors::chunked_body,
    );
}

#[test]
fn http2_frames() {
    let seeds: [&[u8]; 3] = [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x04\x01\x05\0\0\0\x01\x82\x84\x86\x41",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x11\x01\x05\0\0\0\x01\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff\0\0\x05\x01\x05\0\0\0\x03\x82\x86\x84\xbe\x40",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x08\x06\0\0\0\0\0abcdefgh\0\0\x04\x03\0\0\0\0\x01\0\0\0\x08\0\0\x04\x08\0\0\0\0\0\0\0\0\x01",
    ];
    fuzz("http2-frames", &seeds, &["\0\0\0", "\u{1}", "\u{3}", "\u{9}", "\0\0\0\u{1}"], doors::http2_frames);
}

#[test]
fn proxy_header() {
    let seeds: [&[u8]; 4] = [
        b"PROXY TCP4 192.0.2.7 10.0.0.1 4711 80\r\nGET",
        b"PROXY TCP6 2001:db8::1 ::1 1 2\r\n",
        b"PROXY UNKNOWN\r\n",
        b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02\x07\x0a\0\0\x01\x12\x67\0\x50GET",
    ];
    fuzz(
        "proxy-header",
        &seeds,
        &["PROXY ", "TCP4 ", "TCP6 ", "UNKNOWN", "\r\n", " ", "65536", "::"],
        doors::proxy_header,
    );
}

#[test]
fn answer_head() {
    let seeds: [&[u8]; 3] = [
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 \r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
    ];
    fuzz("answer-head", &seeds, &HTTP_WORDS, doors::answer_head);
}

#[test]
fn path() {
    let seeds: [&[u8]; 3] = [b"/a/b/../c//d/%2e%2E/%41?q", b"/%2F%5c/;x", b"/v1/\xc3\xa4"];
    let words = ["/", "//", "/.", "/..", "%2e", "%2F", "%5C", "%00", "%", "%zz", ";", "\\", "?", "#"];
    fuzz("path", &seeds, &words, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        for slash in [EncodedSlash::Refuse, EncodedSlash::Keep] {
            if let Ok(normal) = normalise(&text, slash) {
                assert_eq!(normalise(&normal, slash).as_ref(), Ok(&normal), "the normal form is its own");
                assert!(
                    normal.starts_with('/') && !normal.split('/').any(|segment| segment == ".."),
                    "{normal}"
                );
            }
        }
    });
}

#[test]
fn token() {
    // {"alg":"EdDSA","kid":"k"} . {"sub":"s","exp":1} and one with a key twice.
    let seeds: [&[u8]; 3] = [
        b"eyJhbGciOiJFZERTQSIsImtpZCI6ImsifQ.eyJzdWIiOiJzIiwiZXhwIjoxfQ.AAAA",
        b"eyJhbGciOiJub25lIn0.e30.",
        b"eyJhbGciOiJFZERTQSIsImFsZyI6IkhTMjU2In0.e30.AA",
    ];
    fuzz("token", &seeds, &[".", "..", "=", "-", "_", "e30", "eyJ", "W10"], |bytes| {
        let text = String::from_utf8_lossy(bytes);
        if let Ok(token) = Token::parse(&text) {
            assert!(text.starts_with(token.signed), "what is signed is what came");
        }
    });
}

#[test]
fn policy_document() {
    let words = [
        "\n",
        "[",
        "]",
        "[[",
        "]]",
        "\"",
        "=",
        "{",
        "}",
        ".",
        ",",
        "[limits.a]\n",
        "[[routes]]\n",
        "[[tests]]\n",
        "\"1/day\"",
        "\"300000000000y\"",
        "\"1ns\"",
        "nan",
        "inf",
        "0x",
        "\"field:a\"",
        "\"/{a}\"",
        "\"::/0\"",
        "burst",
        "rate",
        "path",
    ];
    fuzz("policy-document", &[SMALL.as_bytes(), POLICY.as_bytes()], &words, |bytes| {
        let text = String::from_utf8_lossy(bytes);
        match Policy::parse("p.toml", &text, None) {
            Ok(policy) => drop(policy.run_tests("p.toml", &text)),
            Err(faults) => {
                let size: usize = faults.iter().map(|fault| fault.to_string().len()).sum();
                assert!(!faults.is_empty() && size < 1 << 20, "{size}");
            }
        }
    });
}

#[test]
fn overrides() {
    let seeds: [&[u8]; 4] = [
        br#"{"limits.a.rate":"9/min","limits":{"a":{"burst":null}}}"#,
        br#"{"routes.a.limits":[],"blocks.deny":["192.0.2.1"]}"#,
        br#"{"a.b.c.d.e.f.g.h.i.j.k.l.m.n.o.p.q":1,"":2,".":3,"routes..x":4}"#,
        br#"{"x":[[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]]}"#,
    ];
    let words = [".", "\"", "{", "}", "[", "]", ":", ",", "null", "routes.", "limits.", "a", "1e999", "-0"];
    fuzz("overrides", &seeds, &words, |bytes| {
        let Ok(body) = serde_json::from_slice(bytes) else { return };
        let Ok(wanted) = flatten(&body) else { return };
        let wanted: Vec<_> = wanted.into_iter().filter_map(|(path, value)| Some((path, value?))).collect();
        if let Ok(merged) = lay_over(SMALL, &wanted) {
            let parsed: Result<toml::Table, _> = merged.parse();
            assert!(parsed.is_ok(), "what was laid over is a document: {merged}");
            drop(Policy::parse("p.toml", &merged, None));
        }
    });
}

#[test]
fn the_seeds_are_good() {
    Policy::parse("p.toml", SMALL, None).unwrap();
    Policy::parse("p.toml", POLICY, None).unwrap();
}
