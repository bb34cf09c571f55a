//! Settings that are the kubelet's, in its own words: evictions, sysctls.

use super::values::Reader;

impl Reader {
    /// Kubelet's `--eviction-...`.
    pub(super) fn eviction(&mut self) -> kedge_kubelet::Eviction {
        let usual = kedge_kubelet::Eviction::default();
        let grace = "eviction-soft-grace-period";
        let transition = "eviction-pressure-transition-period";
        let policy = kedge_kubelet::Eviction {
            hard: self.kubelets("eviction-hard", usual.hard),
            soft: self.kubelets("eviction-soft", usual.soft),
            soft_grace: self.kubelets(grace, usual.soft_grace),
            max_pod_grace: self.parsed(
                "eviction-max-pod-grace-period",
                "a number of seconds",
                usual.max_pod_grace,
            ),
            minimum_reclaim: self.kubelets("eviction-minimum-reclaim", usual.minimum_reclaim),
            transition: match self.settings.get(transition).filter(|text| !text.is_empty()) {
                None => usual.transition,
                Some(text) => kedge_kubelet::parse_eviction_duration(text).unwrap_or_else(|fault| {
                    self.fault(transition, &fault);
                    usual.transition
                }),
            },
        };
        if let Err(fault) = policy.check() {
            self.fault(grace, &fault);
        }
        policy
    }

    /// A value in a format of the kubelet's own, which says what is wrong with it.
    fn kubelets<T: std::str::FromStr<Err = String>>(&mut self, key: &str, usual: T) -> T {
        let Some(text) = self.settings.get(key).filter(|text| !text.is_empty()) else { return usual };
        text.parse().unwrap_or_else(|fault: String| {
            self.fault(key, &fault);
            usual
        })
    }

    pub(super) fn image_gc(&mut self, high: &str, low: &str) -> kedge_kubelet::ImageGc {
        let usual = kedge_kubelet::ImageGc::default();
        let mut percent = |key: &str, default: u8| {
            let percent = self.parsed(key, "a per cent between 0 and 100", default);
            if percent > 100 {
                self.fault(key, &format!("{percent} is not a per cent between 0 and 100"));
            }
            percent
        };
        let policy = kedge_kubelet::ImageGc {
            high_threshold_percent: percent(high, usual.high_threshold_percent),
            low_threshold_percent: percent(low, usual.low_threshold_percent),
            ..usual
        };
        if policy.low_threshold_percent >= policy.high_threshold_percent {
            self.fault(
                low,
                &format!(
                    "{} must be less than {high}, which is {}",
                    policy.low_threshold_percent, policy.high_threshold_percent
                ),
            );
        }
        policy
    }

    pub(super) fn sysctls(&mut self, key: &str) -> Vec<String> {
        let patterns: Vec<String> =
            self.parts(key, ',').into_iter().map(|pattern| pattern.replace('/', ".")).collect();
        for pattern in &patterns {
            if let Err(fault) = kedge_kubelet::check_sysctl_pattern(pattern) {
                self.fault(key, &fault);
            }
        }
        patterns
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::load;

    #[test]
    fn what_the_kubelet_is_told() {
        let config = load(
            "eviction-hard: [memory.available<50Mi, nodefs.available<1Gi]\nimage-gc-high-threshold: 95\n\
             allowed-unsafe-sysctls: [kernel.msg*, net/core/somaxconn]\n",
            &[("image-gc-low-threshold", "90")],
        )
        .unwrap();
        assert_eq!(
            config.value("eviction-hard").as_deref(),
            Some("memory.available<50Mi,nodefs.available<1Gi")
        );
        assert_eq!((config.image_gc.high_threshold_percent, config.image_gc.low_threshold_percent), (95, 90));
        assert_eq!(config.allowed_unsafe_sysctls, ["kernel.msg*", "net.core.somaxconn"]);
        assert_eq!(load("eviction-hard: off\n", &[]).unwrap().value("eviction-hard").as_deref(), Some("off"));
        let soft = load(
            "eviction-soft: [memory.available<300Mi]\neviction-soft-grace-period: {memory.available: 1m30s}\n\
             eviction-max-pod-grace-period: 20\neviction-minimum-reclaim: {nodefs.available: 500Mi}\n",
            &[("eviction-pressure-transition-period", "30s")],
        )
        .unwrap();
        for (key, value) in [
            ("eviction-soft", "memory.available<300Mi"),
            ("eviction-soft-grace-period", "memory.available=1m30s"),
            ("eviction-max-pod-grace-period", "20"),
            ("eviction-minimum-reclaim", "nodefs.available=500Mi"),
            ("eviction-pressure-transition-period", "30s"),
        ] {
            assert_eq!(soft.value(key).as_deref(), Some(value), "{key}");
        }
        assert_eq!(soft.eviction.soft_grace.to_string(), "memory.available=1m30s");
        for (text, part) in [
            (
                "eviction-hard: nodefs.available=10%\n",
                "eviction-hard: \"nodefs.available=10%\" is no threshold",
            ),
            (
                "eviction-soft: memory.available<1Gi\n",
                "grace period must be specified for the soft eviction threshold memory.available",
            ),
            ("eviction-soft-grace-period: memory.available=soon\n", "\"soon\" is no time such as"),
            ("eviction-minimum-reclaim: memory.available\n", "is not such as nodefs.available=500Mi"),
            ("eviction-max-pod-grace-period: -1\n", "is not a number of seconds"),
            ("eviction-pressure-transition-period: 5 minutes\n", "is no time such as"),
            ("image-gc-high-threshold: 101\n", "101 is not a per cent"),
            ("image-gc-high-threshold: 80\n", "80 must be less than image-gc-high-threshold, which is 80"),
            ("allowed-unsafe-sysctls: vm.swappiness\n", "not known to be namespaced"),
        ] {
            let faults = load(text, &[]).unwrap_err().to_string();
            assert!(faults.contains(part), "{part:?} is not in {faults:?}");
        }
    }
}
