//! The workload of the tests with several nodes.

/// The Deployment `web`, of which each node runs one pod at most, and the Service `web` in front of it. `service`
/// is what the Service's spec says besides: `type: NodePort`.
pub fn web(replicas: usize, service: &str) -> String {
    format!(
        r"
apiVersion: apps/v1
kind: Deployment
metadata: {{name: web}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: web}}}}
  template:
    metadata: {{labels: {{app: web}}}}
    spec:
      tolerations: [{{operator: Exists}}]
      affinity:
        podAntiAffinity:
          requiredDuringSchedulingIgnoredDuringExecution:
          - topologyKey: kubernetes.io/hostname
            labelSelector: {{matchLabels: {{app: web}}}}
      containers:
      - name: hello
        image: kedge.dev/hello:1.0
---
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec: {{{service}, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]}}
"
    )
}
