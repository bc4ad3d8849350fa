use super::*;
use policy::Policy;

const NOW: Timestamp = Timestamp::from_secs(1_000_000);

fn route() -> Arc<Route> {
    let text = "version = 1\n[[routes]]\nname = \"a\"\npath = \"/{*rest}\"\nupstream = \"u\"\nwhen_open = \"stale\"\n";
    let policy = Policy::parse("p", text, None).unwrap();
    Arc::clone(policy.routes.iter().next().unwrap())
}

fn request(fields: &[(&'static str, &'static str)]) -> RequestHeader {
    let mut header = RequestHeader::build("GET", b"/a", None).unwrap();
    for (name, value) in fields {
        header.append_header(*name, *value).unwrap();
    }
    header
}

fn answer(fields: &[(&'static str, &'static str)]) -> ResponseHeader {
    let mut header = ResponseHeader::build(200, None).unwrap();
    for (name, value) in fields {
        header.append_header(*name, *value).unwrap();
    }
    header
}

type Fields<'f> = &'f [(&'static str, &'static str)];

/// Whether the answer to the first request is given to the second one, `later`.
fn given(first: Fields<'_>, says: Fields<'_>, second: Fields<'_>, later: u64) -> bool {
    let (store, route, subject) = (LastGood::default(), route(), CacheSubject::default());
    let ask = |header: &RequestHeader, work: &mut dyn FnMut(&CacheLookup<'_>) -> bool| {
        work(&CacheLookup { route: &route, subject, encrypted: false, target: "/a", header })
    };
    let kept = ask(&request(first), &mut |lookup| {
        let entry = PendingEntry::begin(lookup, &answer(says), NOW);
        entry.map(|entry| store.store(entry)).is_some()
    });
    kept && ask(&request(second), &mut |lookup| {
        store.find(lookup, NOW + Duration::from_secs(later)).is_some()
    })
}

const NOTHING: Fields<'_> = &[];
const TOKEN: Fields<'_> = &[("authorization", "Basic YTpi")];
const OTHER_TOKEN: Fields<'_> = &[("authorization", "Basic Yjpj")];
const COOKIES: Fields<'_> = &[("cookie", "session=1")];

#[test]
fn what_a_service_does_not_let_be_kept_is_not() {
    let same = |says: Fields<'_>| given(NOTHING, says, NOTHING, 10);
    assert!(same(&[]) && same(&[("cache-control", "max-age=5")]), "stale is what it is for");
    for word in ["no-store", "no-cache", "private", "private=\"a\"", "No-Cache=\"b, c\""] {
        assert!(!same(&[("cache-control", "max-age=60"), ("cache-control", word)]), "{word}");
    }
    assert!(!same(&[("set-cookie", "a=b")]) && !same(&[("content-range", "bytes 0-1/2")]));
    assert!(!same(&[("content-length", "1000000")]) && same(&[("content-length", "1000")]));
    for word in ["must-revalidate", "proxy-revalidate", "s-maxage=60"] {
        let says: Fields<'_> = &[("cache-control", "max-age=60"), ("cache-control", word)];
        assert!(given(NOTHING, says, NOTHING, 59), "{word}: while it is fresh");
        assert!(!given(NOTHING, says, NOTHING, 61), "{word}");
        assert!(
            !given(NOTHING, &[("cache-control", word), ("age", "60")], NOTHING, 1),
            "{word}: old already"
        );
    }
    let header = Box::leak("x".repeat(LARGEST_HEADER).into_boxed_str());
    assert!(!same(&[("a", header)]), "a header has a bound as well");
    assert!(!given(NOTHING, &[], NOTHING, OLDEST.as_secs() + 1));
}

#[test]
fn nobody_is_given_what_was_made_for_one_who_shows_who_it_is() {
    for (says, authorized, with_cookie) in [
        ("max-age=60", false, false),
        ("public", true, true),
        ("public, private", false, false),
        ("max-age=60, must-revalidate", true, false),
        ("s-maxage=60", true, false),
    ] {
        let says: Fields<'_> = &[("cache-control", says)];
        for other in [TOKEN, OTHER_TOKEN, NOTHING] {
            assert_eq!(given(TOKEN, says, other, 1), authorized, "{says:?}");
        }
        assert_eq!(
            given(NOTHING, says, TOKEN, 1),
            authorized,
            "{says:?}: nor is one of everybody given to it"
        );
        assert_eq!(given(COOKIES, says, COOKIES, 1), with_cookie, "{says:?}");
        assert_eq!(given(COOKIES, says, NOTHING, 1), with_cookie, "{says:?}");
        assert_eq!(given(NOTHING, says, COOKIES, 1), with_cookie, "{says:?}");
    }
}

#[test]
fn a_known_subject_is_given_its_own_and_nobody_else_s() {
    let (store, route) = (LastGood::default(), route());
    let ann = CacheSubject { method: Some("jwt"), id: Some("ann"), key: None };
    let header = request(&[("authorization", "Bearer a"), ("cookie", "theme=dark")]);
    let lookup = CacheLookup { route: &route, subject: ann, encrypted: true, target: "/a", header: &header };
    let says = answer(&[("cache-control", "private, max-age=60")]);
    store.store(PendingEntry::begin(&lookup, &says, NOW).unwrap());
    let found = |lookup: &CacheLookup<'_>| store.find(lookup, NOW).is_some();
    assert!(found(&lookup));
    let renewed = request(&[("authorization", "Bearer b"), ("cookie", "theme=dark")]);
    assert!(
        found(&CacheLookup { header: &renewed, ..lookup }),
        "the token proves who it is, and is another one each time"
    );
    for subject in [
        CacheSubject { id: Some("bob"), ..ann },
        CacheSubject { method: Some("api_key"), key: Some("1"), ..ann },
        CacheSubject { method: Some("api_key"), ..ann },
        CacheSubject::default(),
    ] {
        assert!(!found(&CacheLookup { subject, ..lookup }), "{subject:?}");
    }
    let session = request(&[("authorization", "Bearer a"), ("cookie", "session=2")]);
    assert!(!found(&CacheLookup { header: &session, ..lookup }), "the service may know somebody else");
}

#[test]
fn a_request_may_forbid_it_and_ask_for_a_part() {
    for one in
        [("cache-control", "no-store"), ("cache-control", "max-age=0, no-cache"), ("range", "bytes=0-1")]
    {
        assert!(!given(&[one], &[], NOTHING, 1), "{one:?} is not kept");
        assert!(!given(NOTHING, &[], &[one], 1), "{one:?} is not given any");
    }
}

#[test]
fn an_answer_is_for_those_who_say_the_same_in_all_fields_by_which_it_varies() {
    let says: Fields<'_> = &[("vary", "Accept-Language, X-Tenant"), ("vary", "accept-language")];
    let first: Fields<'_> = &[("x-tenant", "one"), ("accept-language", "de"), ("accept-language", "en")];
    assert!(given(first, says, first, 1));
    for other in [
        &[("x-tenant", "one"), ("accept-language", "de")][..],
        &[("x-tenant", "two"), ("accept-language", "de"), ("accept-language", "en")],
        &[("x-tenant", "one"), ("accept-language", "de, en")],
        &[("accept-language", "de"), ("accept-language", "en")],
        &[],
    ] {
        assert!(!given(first, says, other, 1), "{other:?}");
    }
    assert!(!given(NOTHING, &[("vary", "accept, *")], NOTHING, 1));
    let many = Box::leak((0..20).map(|n| format!("x-{n}")).collect::<Vec<_>>().join(",").into_boxed_str());
    assert!(!given(NOTHING, &[("vary", many)], NOTHING, 1), "names have a bound");
}

#[test]
fn other_hosts_schemes_and_targets_are_other_things() {
    let (store, route, subject) = (LastGood::default(), route(), CacheSubject::default());
    let header = request(&[("host", "a.test")]);
    let lookup = CacheLookup { route: &route, subject, encrypted: false, target: "/a", header: &header };
    store.store(PendingEntry::begin(&lookup, &answer(&[]), NOW).unwrap());
    let found = |lookup: &CacheLookup<'_>| store.find(lookup, NOW).is_some();
    assert!(found(&lookup) && found(&CacheLookup { header: &request(&[("host", "A.TEST")]), ..lookup }));
    assert!(!found(&CacheLookup { encrypted: true, ..lookup }));
    assert!(!found(&CacheLookup { target: "/b", ..lookup }));
    assert!(!found(&CacheLookup { header: &request(&[("host", "b.test")]), ..lookup }));
    let mut http2 = request(&[]);
    http2.set_version(http::Version::HTTP_2);
    http2.set_uri("http://b.test/a".parse().unwrap());
    assert!(!found(&CacheLookup { header: &http2, ..lookup }), "over HTTP/2 the host stands elsewhere");
    http2.set_uri("http://a.test/a".parse().unwrap());
    assert!(found(&CacheLookup { header: &http2, ..lookup }));
}

#[test]
fn the_largest_answers_stay_within_their_bytes() {
    let (store, route, subject) = (LastGood::default(), route(), CacheSubject::default());
    let header = request(&[]);
    let fields: Vec<_> = (0..100).map(|n| (format!("x-field-{n}"), "v".repeat(20))).collect();
    let mut large = answer(&[]);
    for (name, value) in &fields {
        large.append_header(name.clone(), value).unwrap();
    }
    for number in 0..2_000 {
        let target = format!("/{number}?{}", "q".repeat(30_000));
        let lookup =
            CacheLookup { route: &route, subject, encrypted: false, target: &target, header: &header };
        let mut entry = PendingEntry::begin(&lookup, &large, NOW).unwrap();
        assert!(entry.take_in(&vec![b'x'; LARGEST]) && !entry.take_in(b"x"));
        store.store(entry);
    }
    assert!((MOST_BYTES / 2..=MOST_BYTES).contains(&store.bytes()), "{}", store.bytes());
}
