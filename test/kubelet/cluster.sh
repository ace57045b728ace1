#!/bin/bash
# Joins a real kubelet, over `unipod serve --only cri`, to the API of a
# `unipod serve`, as a second node beside that one's own, and lets the
# controllers and the scheduler there make pods on both.
#
#   test/kubelet/cluster.sh UNIPOD [KUBELET]
#
# See run.sh for what it needs and where it happens.
# shellcheck disable=SC2016 # what is in single quotes is for the container's shell
set -euo pipefail
# shellcheck source=test/kubelet/common.sh
. "$(dirname "$(readlink -f "$0")")/common.sh"

# Pods reach the API by the node's address, and the node has a way out.
ip route add default via 192.0.2.254
api() { "$unipod" --root "$work/api-root" --run "$work/api-run" "$@"; }
api image load "$work/image.tar" >/dev/null
"$unipod" --root "$work/api-root" --run "$work/api-run" serve --manifests "$work/none" --eviction-hard= --image-gc-high-threshold=100 --kubelet-address 127.0.0.1:10260 --cgroup-parent "$group" >>"$work/api.log" 2>&1 &
other=$!
await 'the API' '^ok$' 60 api get --raw /readyz

start_node --bridge unipod1 --ipv4 10.68.0.0/16 --ipv6 fd75:6e69:706f:68::/64
cat >"$work/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: $endpoint
podLogsDir: $work/logs
cgroupRoot: $group
failCgroupV1: false
enforceNodeAllocatable: [none]
authentication: {anonymous: {enabled: false}, x509: {clientCAFile: $work/api-ca.pem}}
authorization: {mode: Webhook}
address: $address
failSwapOn: false
oomScoreAdj: 0
maxOpenFiles: 10000
serverTLSBootstrap: true
volumePluginDir: $work/plugins
evictionHard: {nodefs.available: "1%", imagefs.available: "1%"}
featureGates: {PodAndContainerStatsFromCRI: true}
YAML
kubeconfig=$work/api-run/kubeconfig
sed -n 's/ *certificate-authority-data: //p' "$kubeconfig" | base64 -d >"$work/api-ca.pem"
"$kubelet_program" --config "$work/kubelet.yaml" --root-dir "$work/kubelet" --cert-dir "$work/pki" --kubeconfig "$kubeconfig" \
	--hostname-override second --node-ip $address >>"$work/kubelet.log" 2>&1 &
kubelet=$!
await 'the node joins' ' Ready ' 60 api get node second
check 'what it runs on' '^unipod://' "$(api get node second -o jsonpath='{.status.nodeInfo.containerRuntimeVersion}')"

# The API trusts a kubelet whose serving certificate is of the cluster's authority.
await 'a request for a certificate' 'kubelet-serving' 60 api get csr
api get csr -o name | xargs "$unipod" --root "$work/api-root" --run "$work/api-run" certificate approve >/dev/null

cat >"$work/web.yaml" <<YAML
apiVersion: v1
kind: ConfigMap
metadata: {name: settings}
data: {greeting: hello}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 5
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: web}}}
      containers:
      - name: web
        image: $image
        command: [sh, -c, 'cp /settings/greeting /tmp/index.html; httpd -f -p 8080 -h /tmp']
        readinessProbe: {httpGet: {port: 8080}, periodSeconds: 1}
        volumeMounts: [{name: settings, mountPath: /settings}]
      volumes: [{name: settings, configMap: {name: settings}}]
---
apiVersion: batch/v1
kind: Job
metadata: {name: once}
spec:
  template:
    spec:
      nodeSelector: {kubernetes.io/hostname: second}
      restartPolicy: Never
      containers:
      - name: c
        image: $image
        command: [sh, -c, 'cat /var/run/secrets/kubernetes.io/serviceaccount/namespace']
YAML
api apply -f "$work/web.yaml" >/dev/null
await 'the deployment' '^4$' 90 api get deployment web -o 'jsonpath={.status.readyReplicas}'
check 'pods on both nodes' '^2$' "$(api get pods -l app=web -o 'jsonpath={range .items[*]}{.spec.nodeName}{"\n"}{end}' | sort | uniq -c | grep -c ' 2 ')"
for ip in $(api get pods -l app=web -o 'jsonpath={.items[*].status.podIP}'); do
	check "a pod at $ip" '^hello$' "$(curl -sS "http://$ip:8080/")"
done
await 'a job on the kubelet' '^1$' 60 api get job once -o 'jsonpath={.status.succeeded}'
await 'events of the kubelet' 'Started' 30 api get events --field-selector source=kubelet,reason=Started

# What goes through the API to the kubelet of the other node.
there=$(api get pods -l app=web --field-selector spec.nodeName=second -o 'jsonpath={.items[0].metadata.name}')
job=$(api get pods -l job-name=once -o 'jsonpath={.items[0].metadata.name}')
await 'logs of the other node' '^default$' 30 api logs "$job"
check 'exec on the other node' '^hello$' "$(api exec "$there" -- cat /settings/greeting)"
code=0
api exec "$there" -- sh -c 'exit 7' 2>/dev/null || code=$?
check 'its exit code' '^7$' $code
api port-forward "$there" 18080:8080 >"$work/forward.log" 2>&1 &
forward=$!
await 'port-forward to the other node' '^hello$' 30 curl -sS http://127.0.0.1:18080/
kill $forward
await 'top of both nodes' '^second +[0-9]+m' 60 api top nodes
await 'top of a pod there' "^$there +[0-9]+m" 60 api top pods -l app=web

# A new configuration and a new version reach the kubelet's pods.
api patch configmap settings -p '{"data":{"greeting":"good evening"}}' >/dev/null
api rollout restart deployment web >/dev/null
await 'the rollout' 'successfully rolled out' 90 api rollout status deployment web --timeout=60s
for ip in $(api get pods -l app=web --field-selector spec.nodeName=second,status.phase=Running -o 'jsonpath={.items[*].status.podIP}'); do
	check "a new pod at $ip" '^good evening$|^hello$' "$(curl -sS "http://$ip:8080/")"
done

# Kubelet and runtime are killed; the pods go on.
before_ids=$(crictl ps -q --name '^web$' | sort)
crash $kubelet
crash $node
start_node --bridge unipod1 --ipv4 10.68.0.0/16 --ipv6 fd75:6e69:706f:68::/64
"$kubelet_program" --config "$work/kubelet.yaml" --root-dir "$work/kubelet" --cert-dir "$work/pki" --kubeconfig "$kubeconfig" \
	--hostname-override second --node-ip $address >>"$work/kubelet.log" 2>&1 &
kubelet=$!
await 'the node is back' ' Ready ' 60 api get node second
await 'the deployment afterwards' '^4$' 60 api get deployment web -o 'jsonpath={.status.readyReplicas}'
check 'the same containers' "^$(xargs <<<"$before_ids")\$" "$(crictl ps -q --name '^web$' | sort | xargs)"

api delete -f "$work/web.yaml" --timeout=60s >/dev/null
await 'the end of all pods' '^$' 60 crictl pods -q --state ready # those that ended are the kubelet's to collect
await 'and in the API' 'No resources found' 60 api get pods
echo "kubelet $("$kubelet_program" --version | cut -d' ' -f2) in unipod's cluster: $passed checks passed"
