//! What containers and pods ask for.

use super::*;

#[test]
fn resources() {
    let of = |resources: Value| container(json!({ "resources": resources }));
    refuses_under(
        "spec.containers[0].resources",
        vec![
            (
                of(json!({"requests": {"cpu": "2"}, "limits": {"cpu": "1"}})),
                vec![r#".requests: Invalid value: "2": must be less than or equal to cpu limit of 1"#],
            ),
            (
                of(json!({"limits": {"memory": "-1"}})),
                vec![r#".limits[memory]: Invalid value: "-1": must be greater than or equal to 0"#],
            ),
            (
                of(json!({"limits": {"example.com/gpu": "1500m"}})),
                vec![r#".limits[example.com/gpu]: Invalid value: "1500m": must be an integer"#],
            ),
            (
                of(json!({"requests": {"example.com/gpu": "1"}})),
                vec![".limits: Required value: Limit must be set for non overcommitable resources"],
            ),
            (
                of(json!({"requests": {"example.com/gpu": "1"}, "limits": {"example.com/gpu": "2"}})),
                vec![r#".requests: Invalid value: "1": must be equal to example.com/gpu limit of 2"#],
            ),
            (
                of(json!({"limits": {"gpu": "1"}})),
                vec![
                    r#".limits[gpu]: Invalid value: "gpu": must be a standard resource type or fully qualified"#,
                    r#".limits[gpu]: Invalid value: "gpu": must be a standard resource for containers"#,
                ],
            ),
            (
                of(json!({"limits": {"storage": "1"}})),
                vec![
                    r#".limits[storage]: Invalid value: "storage": must be a standard resource for containers"#,
                ],
            ),
            (
                of(json!({"limits": {"requests.example.com/a": "1"}})),
                vec![
                    r#".limits[requests.example.com/a]: Invalid value: "requests.example.com/a": doesn't follow extended resource name standard"#,
                ],
            ),
            (
                of(json!({"limits": {"hugepages-2Mi": "4Mi"}, "requests": {"hugepages-2Mi": "4Mi"}})),
                vec![": Forbidden: HugePages require cpu or memory"],
            ),
            (
                of(json!({"limits": {"cpu": "1", "hugepages-2Mi": "3Mi"}})),
                vec![
                    r#".limits[hugepages-2Mi]: Invalid value: "3Mi": 3Mi is not positive integer multiple of hugepages-2Mi"#,
                ],
            ),
            (
                of(json!({"claims": [{"name": "x"}, {}, {"name": "x"}]})),
                vec![
                    r#".claims[0]: Not found: "x": must be one of the names in pod.spec.resourceClaims which is empty"#,
                    ".claims[1]: Required value",
                    r#".claims[2]: Duplicate value: "x""#,
                    r#".claims[2]: Not found: "x": must be one of the names in pod.spec.resourceClaims which is empty"#,
                ],
            ),
        ],
    );
    accepts([
        of(json!({"requests": {"example.com/gpu": "2"}, "limits": {"example.com/gpu": "2"}})),
        of(
            json!({"limits": {"cpu": "1500m", "memory": "1.5Gi", "hugepages-2Mi": "4Mi", "kubernetes.io/x": "1"}}),
        ),
    ]);
}

#[test]
fn claims_and_resources_of_pods() {
    let mut claimed = container(
        json!({"resources": {"claims": [{"name": "c", "request": "r"}, {"name": "c", "request": "s"}, {"name": "d"}]}}),
    );
    claimed["resourceClaims"] =
        json!([{"name": "c", "resourceClaimName": "x"}, {"name": "b", "resourceClaimTemplateName": "t"}]);
    refuses([
        (
            claimed,
            &[
                r#"spec.containers[0].resources.claims[2]: Not found: "d": must be one of the names in pod.spec.resourceClaims: b, c"#,
            ],
        ),
        (
            spec(json!({"resourceClaims": [{"name": "c"}, {"name": "c", "resourceClaimName": "x"}]})),
            &[
                r#"spec.resourceClaims[0]: Invalid value: {"name":"c"}: must specify one of: `resourceClaimName`, `resourceClaimTemplateName`"#,
                r#"spec.resourceClaims[1].name: Duplicate value: "c""#,
            ],
        ),
        (
            spec(
                json!({"containers": [{"name": "a", "image": "i", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "4"}}}],
                "resources": {"requests": {"cpu": "1", "example.com/a": "1"}, "limits": {"cpu": "3", "example.com/a": "1"}}}),
            ),
            &[
                r#"spec.resources.limits[example.com/a]: Unsupported value: "example.com/a": supported values: "cpu", "hugepages-", "memory""#,
                r#"spec.resources.requests[example.com/a]: Unsupported value: "example.com/a": supported values: "cpu", "hugepages-", "memory""#,
                r#"spec.resources.requests[cpu]: Invalid value: "1": must be greater than or equal to aggregate container requests of 2"#,
                r#"spec.resources.containers[0][cpu].limits: Invalid value: "4": must be less than or equal to pod limits of 3"#,
            ],
        ),
        (
            spec(json!({"overhead": {"foo": "1"}})),
            &[
                r#"spec.overhead.limits[foo]: Invalid value: "foo": must be a standard resource type or fully qualified"#,
                r#"spec.overhead.limits[foo]: Invalid value: "foo": must be a standard resource for containers"#,
            ],
        ),
    ]);
}
