use serde_json::json;

use super::*;

fn value(source: &str, this: &serde_json::Value) -> Result<Value, Error> {
    let seen = [("self", dynamic(this))];
    Program::compile(source)?.evaluate(Scope::new(&seen), &mut Budget::validation())
}

fn eval(source: &str, this: serde_json::Value) -> Result<bool, Error> {
    let seen = [("self", dynamic(&this))];
    Program::compile(source)?.is_true(Scope::new(&seen), &mut Budget::validation())
}

#[test]
fn what_goes_too_deep_is_refused() {
    for deep in
        [format!("self{}", ".a".repeat(20_000)), "[".repeat(2000), format!("{}true", "!".repeat(2000))]
    {
        assert!(matches!(Program::compile(&deep), Err(Error::Syntax(_))));
    }
    let long = format!("self.a == '{}'", "(".repeat(5000));
    assert_eq!(eval(&long, json!({ "a": "(".repeat(5000) })), Ok(true));
}

/// On a stack of the usual size, without optimisation.
#[test]
fn the_deepest_that_is_allowed_is_evaluated() {
    let nested = |open: &str, middle: &str, close: &str, most: usize| {
        format!("{}{middle}{}", open.repeat(most), close.repeat(most))
    };
    for source in [
        nested("!", "true", "", 240),
        nested("1+", "1", "", 240),
        nested("-", "1", "", 240),
        nested("(", "1", ")", 90),
        nested("[", "self", "]", 90),
        nested("{1: ", "self", "}", 90),
        nested("true ? (", "1", ") : 1", 45),
        nested("", "self", ".a", 240),
        nested("", "self", ".?a", 110),
        nested("", "self", "[0]", 240),
        nested("self || ", "self", "", 110),
        nested("size([", "self", "])", 45),
        nested("[1].map(x, ", "self", ")", 60),
        nested("[1].all(k, v, ", "self", ")", 60),
        nested("Object{a: ", "self", "}", 90),
        nested("1 + (", "1", ")", 90),
    ] {
        let program = Program::compile(&source).unwrap_or_else(|error| panic!("{source}: {error}"));
        let seen = [("self", dynamic(&json!({})))];
        let _ = program.evaluate(Scope::new(&seen), &mut Budget::validation());
    }
    // What the parser still takes, and what it makes of it goes too deep.
    for source in [
        nested("1+", "1", "", 990),
        nested("", "self", ".a", 990),
        nested("", "self", "[0]", 990),
        nested("", "self", ".?a", 490),
        nested("-", "1", "", 990),
        nested("!", "true", "", 990),
        nested("1-", "1", "", 990),
        nested("1==", "1", "", 490),
        nested("", "self", ".f()", 490),
        nested("", "self", ".map(x, x)", 490),
        nested("", "self", ".all(x, x)", 490),
        nested("", "self", ".optMap(x, x)", 490),
        nested("a in ", "1", "", 990),
        nested("true || ", "1", "", 490),
        nested("true || false && ", "1", "", 240),
        nested("true ? 1 : ", "1", "", 490),
        nested("[", "1", "]", 490),
        nested("{1: ", "1", "}", 490),
        nested("a{b: ", "1", "}", 490),
        nested("f(", "1", ")", 490),
    ] {
        let _ = Program::compile(&source);
    }
    for source in [nested("1 + ", "1", "", 300), nested("", "self", ".a", 300), nested("[", "1", "]", 300)] {
        assert!(matches!(Program::compile(&source), Err(Error::Syntax(_))), "{source}");
    }
    let chain = format!("{}false", "self.x || ".repeat(330));
    assert_eq!(eval(&chain, json!({"x": false})), Ok(false), "parts of it are side by side");
    // Variables that use variables, each of them deep.
    let named: Vec<(String, Result<Program, Error>)> = (0..100)
        .map(|index| {
            let before = if index == 0 { "1".to_owned() } else { format!("variables.v{}", index - 1) };
            (format!("v{index}"), Program::compile(&nested("(1 + ", &before, ")", 90)))
        })
        .collect();
    let variables = Variables::new(&named);
    let last = Program::compile("variables.v99").expect("compiled");
    let outcome = last.evaluate(Scope::with(&[], &variables), &mut Budget::validation());
    assert!(outcome.is_err_and(|error| error.to_string().contains("nested too deep")));
}

#[test]
fn expressions() {
    for (source, this, expected) in [
        ("self.a > 1 && self.b == 'x'", json!({"a": 2, "b": "x"}), true),
        ("!has(self.a) || self.a.size() < 3", json!({}), true),
        ("self.all(x, x.n > 0)", json!([{"n": 1}, {"n": 0}]), false),
        ("self.exists_one(x, x == 1)", json!([1, 2]), true),
        ("self.matches('^[a-z]+$')", json!("abc"), true),
        ("self.find('[0-9]+') == '12'", json!("ab12"), true),
        ("self.findAll('[0-9]', 2) == ['1', '2']", json!("a1b2c3"), true),
        ("self.startsWith('a') && self.lowerAscii() == 'abc'", json!("aBC"), true),
        ("size(self) == 2 && 'b' in self", json!({"a": 1, "b": 2}), true),
        ("self.split('.').size() == 2", json!("a.b"), true),
        ("'abc'.split('') == ['a', 'b', 'c'] && 'a,b,c'.split(',', 2) == ['a', 'b,c']", json!(null), true),
        ("int(self) >= 10", json!("12"), true),
        ("self.map(x, x * 2) == [2, 4] && self.filter(x, x > 1) == [2]", json!([1, 2]), true),
        ("self.map(x, x > 1, string(x)) == ['2']", json!([1, 2]), true),
        ("self.map(x, self.map(y, x + y)) == [[2, 3], [3, 4]]", json!([1, 2]), true),
        ("self.exists(x, x.n / 0 == 1 || x.n == 2)", json!([{"n": 1}, {"n": 2}]), true),
        ("self.a == 1 || self.b == 1", json!({"b": 1}), true),
        ("self ? true : self", json!(true), true),
        ("1 == 1.0 && 2u > 1 && dyn(1) < 1.5", json!(null), true),
        ("[1, 'a', null] == [1, 'a', null] && {'a': [1]} != {'a': [2]}", json!(null), true),
        ("self[0] == 'x' && self[-0] == 'x'", json!(["x"]), true),
        ("type(self) == string && type(1) != type(1u) && type(self.size()) == int", json!("a"), true),
        ("string(1.5) == '1.5' && string(2.0) == '2' && string(true) == 'true'", json!(null), true),
        ("bytes('ab').size() == 2 && string(b'ab') == 'ab'", json!(null), true),
        // Optional values.
        ("self.?a.orValue(3) == 3 && self.?b.?c.hasValue()", json!({"b": {"c": 1}}), true),
        ("self[?'a'].orValue('x') == 'x' && optional.of(1).value() == 1", json!({}), true),
        ("self.?a.optMap(x, x + 1).orValue(0) == 2", json!({"a": 1}), true),
        (
            "self.?a.optFlatMap(x, x.?b).orValue(0) == 2 && !self.?c.optMap(x, x).hasValue()",
            json!({"a": {"b": 2}}),
            true,
        ),
        ("self.all(y, optional.of(y).optMap(x, x + y).value() == 2 * y)", json!([1, 2]), true),
        ("[?self.?a, 1] == [1] && {?'k': self.?a} == {}", json!({}), true),
        ("optional.none().or(optional.of(2)).value() == 2", json!(null), true),
        // Two variables.
        ("self.all(k, v, k == v)", json!({"a": "a", "b": "b"}), true),
        ("self.exists(i, v, i == 1 && v == 'b')", json!(["a", "b"]), true),
        ("self.existsOne(k, v, v > 1)", json!({"a": 1, "b": 2}), true),
        ("self.transformList(i, v, i > 0, v + i) == [3]", json!([1, 2]), true),
        ("self.transformMap(k, v, v > 1, v * 2) == {'b': 4}", json!({"a": 1, "b": 2}), true),
        ("self.transformMapEntry(k, v, {v: k}) == {'x': 'a'}", json!({"a": "x"}), true),
        // Strings.
        ("'tacocat'.charAt(3) == 'o' && 'tacocat'.indexOf('a', 2) == 5", json!(null), true),
        ("'tacocat'.lastIndexOf('a') == 5 && 'tacocat'.lastIndexOf('a', 4) == 1", json!(null), true),
        ("'hello'.substring(1, 3) == 'el' && ' a '.trim() == 'a'", json!(null), true),
        ("['a', 'b'].join('-') == 'a-b' && 'aaa'.replace('a', 'b', 2) == 'bba'", json!(null), true),
        ("'%s is %d, %.2f %x'.format(['a', 1, 1.005, 255]) == 'a is 1, 1.00 ff'", json!(null), true),
        (r#"strings.quote("a\nb") == '"a\\nb"'"#, json!(null), true),
        ("'äöü'.size() == 3 && 'äöü'.charAt(1) == 'ö'", json!(null), true),
        // Lists and sets.
        ("self.isSorted() && self.min() == 1 && self.max() == 3 && self.sum() == 6", json!([1, 2, 3]), true),
        ("self.indexOf(2) == 1 && self.lastIndexOf(9) == -1", json!([1, 2]), true),
        ("sets.contains(self, [1]) && sets.intersects(self, [2, 5])", json!([1, 2]), true),
        ("sets.equivalent(self, [2, 1, 1])", json!([1, 2]), true),
    ] {
        assert_eq!(eval(source, this), Ok(expected), "{source}");
    }
}

#[test]
fn times() {
    for source in [
        "duration('1h') + duration('30m') == duration('90m')",
        "timestamp('2024-03-01T00:00:00Z') - timestamp('2024-02-28T00:00:00Z') == duration('48h')",
        "timestamp('2024-02-28T00:00:00Z') + duration('24h') < timestamp('2024-03-01T00:00:00Z')",
        "timestamp('2024-02-28T23:30:00Z').getHours('+01:00') == 0",
        "timestamp('2024-02-28T23:30:00Z').getMonth() == 1 && timestamp(0).getFullYear() == 1970",
        "timestamp('2024-02-28T23:30:00Z').getDayOfWeek() == 3 && timestamp(0).getDate() == 1",
        "duration('90m').getMinutes() == 90 && string(duration('90m')) == '5400s' && -duration('1s') < duration('0s')",
        "string(timestamp('2024-02-28T23:30:00.5Z')) == '2024-02-28T23:30:00.5Z' && int(timestamp(5)) == 5",
        "type(duration('1s')) == google.protobuf.Duration",
    ] {
        assert_eq!(eval(source, json!(null)), Ok(true), "{source}");
    }
    for (source, why) in [
        ("timestamp('9999-12-31T23:59:59Z') + duration('1h') == timestamp(0)", "timestamp overflow"),
        ("duration(self) == duration('1s')", "time: invalid duration \"x\""),
        ("9223372036854775807 + 1 == 0", "integer overflow"),
        ("1 / 0 == 1", "division by zero"),
    ] {
        assert_eq!(eval(source, json!("x")), Err(Error::Failed(why.to_owned())), "{source}");
    }
}

#[test]
fn kubernetes_libraries() {
    for source in [
        // Quantities.
        "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('500m').compareTo(quantity('0.5')) == 0",
        "isQuantity('1.5Mi') && !isQuantity('1.5X') && quantity('50k').add(20).sub(quantity('20')) == quantity('50k')",
        "quantity('2k').asInteger() == 2000 && !quantity('1.5').isInteger() && quantity('-1').sign() == -1",
        "quantity('1500m').asApproximateFloat() == 1.5",
        // URLs.
        "url('https://user@example.com:8443/a%20b/c?x=1&y=2&x=3').getHost() == 'example.com:8443'",
        "url('https://example.com:8443/').getHostname() == 'example.com' && url('https://[::1]:80/').getPort() == '80'",
        "url('https://[::1]:80/').getHostname() == '::1' && url('/path?q').getScheme() == ''",
        "url('https://e.com/a b').getEscapedPath() == '/a%20b'",
        "url('https://e.com/?x=1&y=2&x=3').getQuery() == {'x': ['1', '3'], 'y': ['2']}",
        "isURL('https://example.com') && !isURL('../relative') && !isURL('https://a:b/') && !isURL('mailto:a@b')",
        // Addresses.
        "ip('192.168.0.1').family() == 4 && ip('::1').isLoopback() && !isIP('::ffff:1.2.3.4') && !isIP('1.2.3')",
        "ip.isCanonical('2001:db8::1') && !ip.isCanonical('2001:DB8::1') && string(ip('::1')) == '::1'",
        "ip('10.0.0.1').isGlobalUnicast() && ip('fe80::1').isLinkLocalUnicast() && ip('0.0.0.0').isUnspecified()",
        "cidr('192.168.1.5/24').containsIP('192.168.1.77') && !cidr('192.168.1.0/24').containsIP(ip('192.168.2.1'))",
        "cidr('10.0.0.0/8').containsCIDR('10.1.0.0/16') && !cidr('10.1.0.0/16').containsCIDR(cidr('10.0.0.0/8'))",
        "cidr('192.168.1.5/24').masked() == cidr('192.168.1.0/24') && cidr('::/0').prefixLength() == 0",
        "string(cidr('10.0.0.0/8').ip()) == '10.0.0.0' && !isCIDR('10.0.0.0/33') && type(cidr('::/0')) == net.CIDR",
        "cidr('::/0').containsIP('::1') && cidr('0.0.0.0/0').containsIP('1.2.3.4')",
        // Formats.
        "!format.dns1123Label().validate('my-label').hasValue()",
        "format.dns1123Label().validate('My_Label').value().size() == 1",
        "format.named('uuid').value().validate('x').value() == ['does not match the UUID format']",
        "!format.named('nothing').hasValue() && !format.dns1123LabelPrefix().validate('prefix-').hasValue()",
        "!format.date().validate('2021-01-01').hasValue() && format.datetime().validate('2021-01-01').hasValue()",
        "!format.uri().validate('http://example.com').hasValue() && format.byte().validate('%%').hasValue()",
        // Versions.
        "semver('1.2.3').isLessThan(semver('1.10.0')) && semver('1.0.0-alpha.1').isLessThan(semver('1.0.0'))",
        "isSemver('1.0.0-rc.1+b5') && !isSemver('v1.0') && isSemver('v1.0', true) && !isSemver('01.0.0')",
        "semver('v01.02', true).compareTo(semver('1.2.0')) == 0 && semver('1.2.3').minor() == 2",
        // Images.
        "image('nginx').registry() == 'index.docker.io' && image('nginx').repository() == 'library/nginx'",
        "image('registry.k8s.io/a/b:v1').tag() == 'v1' && image('localhost:5000/ab').identifier() == 'latest'",
        "isImage('registry.k8s.io/ab') && !isImage('registry.k8s.io//ab') && !isImage('UPPER') && !isImage('a:')",
        "image('registry.k8s.io/ab:v1@sha256:6aefddb645ee6963afd681b1845c661d0ea4c3b20ab9db86d9e753b203d385f2').containsDigest()",
        "image('ab@sha256:6aefddb645ee6963afd681b1845c661d0ea4c3b20ab9db86d9e753b203d385f2').tag() == '' && !isImage('ab@sha256:12')",
        "jsonpatch.escapeKey('k8s.io/my~label') == 'k8s.io~1my~0label'",
    ] {
        assert_eq!(eval(source, json!(null)), Ok(true), "{source}");
    }
    for (source, why) in [
        ("ip('::ffff:1.2.3.4').family() == 4", "IPv4-mapped IPv6 address"),
        ("cidr('10.0.0.0').prefixLength() == 1", "network address parse error during conversion from string"),
        (
            "url('../x').getHost() == ''",
            "URL parse error during conversion from string: parse \"../x\": invalid URI for request",
        ),
        ("quantity('x').isInteger()", "quantities must match the regular expression"),
        ("semver('1').major() == 1", "No Major.Minor.Patch elements found"),
        ("quantity('1').isLessThan(semver('1.0.0'))", "no such overload"),
    ] {
        match eval(source, json!(null)) {
            Err(Error::Failed(text)) => assert!(text.starts_with(why), "{source}: {text}"),
            other => panic!("{source}: {other:?}"),
        }
    }
}

#[test]
fn messages_are_made_into_json() {
    let made = value(
        "Object{spec: Object.spec{replicas: self + 1, containers: [Object.spec.containers{name: 'a'}], ?x: optional.none()}}",
        &json!(1),
    );
    let wanted = json!({"spec": {"replicas": 2, "containers": [{"name": "a"}]}});
    assert_eq!(made.expect("a value").to_json(), Some(wanted));
    assert!(matches!(value("Object{spec: Object.status{}}", &json!(1)), Err(Error::Failed(_))));
    assert!(matches!(Program::compile("Thing{}"), Err(Error::Unsupported(_))));
    assert!(matches!(Program::compile("JSONPatch{what: 1}"), Err(Error::Syntax(_))));
}

#[test]
fn what_is_beyond_us_is_told_apart() {
    assert!(matches!(Program::compile("nothing(self)"), Err(Error::Unsupported(_))));
    assert!(matches!(eval("unknown == 1", json!({})), Err(Error::Unsupported(_))));
    assert_eq!(eval("self.missing == 1", json!({})), Err(Error::Failed("no such key: missing".to_owned())));
    assert_eq!(eval("self[3] == 1", json!([])), Err(Error::Failed("index out of bounds: 3".to_owned())));
    assert_eq!(eval("self + 1 == 1", json!("a")), Err(Error::Failed("no such overload".to_owned())));
    assert!(matches!(eval("self ==", json!({})), Err(Error::Syntax(_))));
    assert!(matches!(Program::compile("self.matches('(')"), Err(Error::Syntax(_))));
    assert!(matches!(Program::compile("duration('1 day') == self"), Err(Error::Syntax(_))));
    assert!(matches!(eval("self", json!(1)), Err(Error::Failed(_))));
}

/// Upstream's numbers: an identifier, a selection and an index are one each, a list is ten, a map thirty.
#[test]
fn steps_cost_what_they_cost_upstream() {
    let (mut found, mut wanted) = (Vec::new(), Vec::new());
    for (source, cost) in [
        ("self.a.b", 3),
        ("self[0]", 2),
        ("has(self.a)", 1),
        ("[1, 2]", 0),
        ("[1, self.a.b]", 13),
        ("{'a': self}", 31),
        ("1 + 1", 1),
        ("true && true || false", 0),
        ("true ? 1 : 2", 0),
        ("'abcdefghijk' == 'abcdefghijkl'", 2),
        ("'aaaaaaaaaaaaaaaaaaaa'.contains('aaaaaaaaaaa')", 4),
        ("'aaaaaaaaaaaaaaaaaaa'.matches('abcde')", 4),
        ("1 in [1, 2, 3]", 3),
        // Condition (2), accumulator (1) and body (2) for each, the result; constants cost nothing.
        ("[1, 2].all(x, x > 0)", 11),
        ("[1, 2].map(x, x)", 27),
    ] {
        let program = Program::compile(source).expect("compiled");
        let mut meter = Budget::validation().meter();
        let seen = [("self", dynamic(&json!({"a": {"b": 1}})))];
        let _ = eval::evaluate(&program.node, Scope::new(&seen), &mut meter);
        found.push((source, meter.spent()));
        wanted.push((source, cost));
    }
    assert_eq!(found, wanted);
}

/// Nothing an expression says makes it run on: the budget ends it, and no `||` forgives that.
#[test]
fn expensive_expressions_end() {
    let numbers: Vec<i64> = (0..1000).collect();
    let text = "a".repeat(100_000);
    let this = json!({"n": numbers, "t": text});
    for source in [
        "self.n.all(a, self.n.all(b, self.n.all(c, a + b + c >= 0)))",
        "self.n.exists(a, self.n.exists(b, self.n.exists(c, a + b + c < 0))) || true",
        "true || self.n.map(a, self.n.map(b, self.n.map(c, self))).size() > 0 ? self.n.map(a, self.n.map(b, self.n.map(c, self))).size() > 0 : false",
        "self.n.all(a, self.t.matches('(a*)*b') || true)",
        "self.n.all(a, self.t.replace('a', 'aaaaaaaaaaaaaaaaaaaa').replace('a', 'aaaaaaaaaaaaaaaaaaaa').size() > 0)",
        "self.n.all(a, (self.t + self.t + self.t).size() > 0)",
        "self.n.all(a, '%s%s'.format([self.t, self.t]) != '')",
        "self.n.all(a, self.n.all(b, self.n == [] + self.n))",
        "self.n.map(a, self.t.split('')).size() > 0",
        "self.n.all(a, self.n.map(b, string(b)).join(self.t).size() > 0)",
        "self.n.all(a, sets.equivalent(self.n, self.n))",
        "self.n.transformMap(i, a, self.n.transformMap(j, b, self.n.transformList(k, c, c))).size() > 0",
    ] {
        let outcome = eval(source, this.clone());
        assert!(outcome.as_ref().is_err_and(Error::is_final), "{source}: {outcome:?}");
    }
}

#[test]
fn a_budget_is_for_all_together() {
    let seen = [("self", dynamic(&json!((0..400).collect::<Vec<i64>>())))];
    let program = Program::compile("self.all(a, self.all(b, a >= 0))").expect("compiled");
    let mut budget = Budget::conditions();
    let mut rounds = 0;
    let last = loop {
        match program.is_true(Scope::new(&seen), &mut budget) {
            Ok(true) => rounds += 1,
            other => break other,
        }
    };
    assert_eq!(last, Err(Error::Budget));
    assert!((2..4).contains(&rounds), "{rounds}");
    assert!(budget.is_spent());
}

#[test]
fn variables_are_computed_once_and_only_if_used() {
    let named: Vec<(String, Result<Program, Error>)> = [
        ("a", "self + 1"),
        ("b", "variables.a * 2"),
        ("bad", "1 / 0"),
        ("late", "variables.later"),
        ("later", "1"),
    ]
    .map(|(name, source)| (name.to_owned(), Program::compile(source)))
    .into();
    let seen = [("self", Value::Int(1))];
    let variables = Variables::new(&named);
    let run = |source: &str| {
        let scope = Scope::with(&seen, &variables);
        Program::compile(source).expect("compiled").evaluate(scope, &mut Budget::validation())
    };
    assert_eq!(run("variables.b + variables.a"), Ok(Value::Int(6)));
    assert_eq!(run("has(variables.a) && !has(variables.c)"), Ok(Value::Bool(true)));
    let failed = run("variables.bad == 1").expect_err("it fails");
    assert_eq!(failed.to_string(), "composited variable \"bad\" fails to evaluate: division by zero");
    assert!(run("variables.late == 1").is_err(), "one sees only those before it");
}

#[test]
fn questions_about_users_are_put() {
    struct Fixed;
    impl Authorizer for Fixed {
        fn decide(&self, question: &Question) -> Decision {
            let allowed =
                &*question.verb == "get" && &*question.resource == "pods" && &*question.namespace == "a";
            Decision { allowed, reason: format!("{}/{}", question.group, question.path), error: None }
        }
    }
    let request = Question { resource: "pods".into(), namespace: "a".into(), ..Question::default() };
    let seen = [("authorizer", Check::variable(Arc::new(Fixed), request))];
    for (source, expected) in [
        ("authorizer.group('').resource('pods').namespace('a').check('get').allowed()", Ok(true)),
        ("authorizer.group('apps').resource('pods').check('get').reason() == 'apps/'", Ok(true)),
        ("authorizer.path('/healthz').check('get').allowed()", Ok(false)),
        (
            "authorizer.group('').resource('pods').fieldSelector('a=b').namespace('a').check('get').allowed()",
            Ok(true),
        ),
        (
            "authorizer.requestResource.check('get').allowed() && !authorizer.requestResource.check('get').errored()",
            Ok(true),
        ),
        ("authorizer.check('get').allowed()", Err(Error::Failed("no such overload".to_owned()))),
        ("[1, 2, 3].all(x, authorizer.path('/').check('get').allowed() || true)", Err(Error::Exceeded)),
    ] {
        let program = Program::compile(source).expect("compiled");
        assert_eq!(program.is_true(Scope::new(&seen), &mut Budget::validation()), expected, "{source}");
    }
}

/// Every character of it is one, and every one would be told with the whole line.
#[test]
fn not_all_mistakes_are_told() {
    let bad = "1648028636146\u{1}S\u{0}".repeat(2000);
    let error = Program::compile(&bad).expect_err("no expression").to_string();
    assert!(error.len() < 5000 && error.contains("ERROR: <input>:1:"), "{}", error.len());
    let error = Program::compile("self ==").expect_err("no expression").to_string();
    assert!(error.contains("| self =="), "{error}");
}

#[test]
fn names_are_escaped() {
    for (name, expected) in
        [("a", "a"), ("a-b", "a__dash__b"), ("namespace", "__namespace__"), ("a__b", "a__underscores__b")]
    {
        assert_eq!(escaped(name), expected);
    }
}
