//! Settings that are the kubelet's, in its own words: thresholds, sysctls.

use super::values::Reader;

impl Reader {
    /// Kubelet's `--eviction-hard`.
    pub(super) fn thresholds(&mut self, key: &str) -> kedge_kubelet::Thresholds {
        let Some(text) = self.settings.get(key).filter(|text| !text.is_empty()) else {
            return kedge_kubelet::Thresholds::default();
        };
        text.parse().unwrap_or_else(|fault: String| {
            self.fault(key, &fault);
            kedge_kubelet::Thresholds::default()
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
        for (text, part) in [
            (
                "eviction-hard: nodefs.available=10%\n",
                "eviction-hard: \"nodefs.available=10%\" is no threshold",
            ),
            ("image-gc-high-threshold: 101\n", "101 is not a per cent"),
            ("image-gc-high-threshold: 80\n", "80 must be less than image-gc-high-threshold, which is 80"),
            ("allowed-unsafe-sysctls: vm.swappiness\n", "not known to be namespaced"),
        ] {
            let faults = load(text, &[]).unwrap_err().to_string();
            assert!(faults.contains(part), "{part:?} is not in {faults:?}");
        }
    }
}
