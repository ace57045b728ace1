#!/bin/bash
# Runs a real kubelet, without an API server, over `unipod serve --only cri`
# and checks what it makes of static pods.
#
#   test/kubelet/run.sh UNIPOD [KUBELET]
#
# KUBELET is built at the version that tools/go.mod pins when it isn't named.
# Everything happens in mount and network namespaces, control groups and
# directories of its own; the kernel settings that a kubelet changes are put
# back. The images are loaded, so that no registry is needed.
#
# Environment: KUBELET_GATES names more feature gates ("EventedPLEG: true"),
# KEEP=1 keeps the logs of a run that succeeded, too.
# shellcheck disable=SC2016 # what is in single quotes is for the container's shell
set -euo pipefail
# shellcheck source=test/kubelet/common.sh
. "$(dirname "$(readlink -f "$0")")/common.sh"

manifests=$work/manifests
mkdir -p "$manifests" "$work/share"
port=https://127.0.0.1:10250
get() { curl -ksS --fail-with-body --max-time 20 "$port$1"; }
# pod NAME FILTER: of the kubelet's own view of a pod.
pod() { get /pods | jq -r --arg n "$1-here" ".items[] | select(.metadata.name == \$n) | $2"; }
# container POD CONTAINER FILTER: of its status.
container() { pod "$1" "(.status.initContainerStatuses // [] | .[]), (.status.containerStatuses // [] | .[]) | select(.name == \"$2\") | $3"; }
ready() { pod "$1" '.status | .phase + " " + (.conditions[] | select(.type == "Ready") | .status)'; }
enter() { # PROTOCOL POD CONTAINER WORD...: input and output are the command's
	local protocol=$1 path="/exec/default/$2-here/$3?input=1&output=1&error=1"
	shift 3
	for word in "$@"; do path+="&command=$(jq -rn --arg w "$word" '$w | @uri')"; done
	"$here/bin/stream" exec "$protocol" "$port$path"
}

# start_kubelet true|false: whether it takes all statistics from the CRI.
start_kubelet() {
	cat >"$work/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: $endpoint
staticPodPath: $manifests
podLogsDir: $work/logs
cgroupRoot: $group
failCgroupV1: false
enforceNodeAllocatable: [none]
authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
address: 127.0.0.1
fileCheckFrequency: 1s
syncFrequency: 5s
volumeStatsAggPeriod: 2s
failSwapOn: false
oomScoreAdj: 0
maxOpenFiles: 10000
containerLogMaxSize: 20Ki
containerLogMaxFiles: 3
containerLogMonitorInterval: 3s
volumePluginDir: $work/plugins
evictionHard: {nodefs.available: "1%", imagefs.available: "1%"}
featureGates: {PodAndContainerStatsFromCRI: $1${KUBELET_GATES:+, $KUBELET_GATES}}
YAML
	"$kubelet_program" --config "$work/kubelet.yaml" --root-dir "$work/kubelet" --cert-dir "$work/pki" \
		--hostname-override here --node-ip $address >>"$work/kubelet.log" 2>&1 &
	kubelet=$!
	await 'the kubelet' '^ok$' 60 get /healthz
}
# manifest NAME: a static pod appears or changes, in one step.
manifest() {
	cat >"$work/manifest"
	mv "$work/manifest" "$manifests/$1.yaml"
}
start_node
start_kubelet true

# A pod with all that has an order: init containers, a sidecar, probes, hooks.
web() { # ROUND
	manifest web <<YAML
apiVersion: v1
kind: Pod
metadata: {name: web, namespace: default, labels: {app: web}}
spec:
  terminationGracePeriodSeconds: 10
  initContainers:
  - name: first
    image: $image
    command: [sh, -c, 'umask 0; echo first >>/data/order']
    volumeMounts: [{name: data, mountPath: /data}]
  - name: sidecar
    image: $image
    restartPolicy: Always
    command: [sh, -c, 'echo sidecar >>/data/order; trap "echo sidecar ends >>/share/end; exit" TERM; touch /tmp/up; while :; do sleep 0.1; done']
    startupProbe: {exec: {command: [test, -e, /tmp/up]}, periodSeconds: 1}
    volumeMounts: [{name: data, mountPath: /data}, {name: share, mountPath: /share}]
  - name: last
    image: $image
    command: [sh, -c, 'echo last >>/data/order']
    volumeMounts: [{name: data, mountPath: /data}]
  containers:
  - name: web
    image: $image
    command: [sh, -c, 'echo web >>/data/order; echo started; trap "echo web ends >>/share/end; exit" TERM; httpd -p 8080 -h /data; while :; do sleep 0.1; done']
    env:
    - {name: ROUND, value: $1}
    - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
    - {name: IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}
    readinessProbe: {httpGet: {port: 8080, path: /order}, periodSeconds: 1}
    livenessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
    lifecycle:
      postStart: {exec: {command: [sh, -c, 'echo hook >>/data/hook']}}
      preStop: {exec: {command: [sh, -c, 'echo hook >>/share/end']}}
    resources: {requests: {cpu: 50m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
    securityContext: {runAsUser: 1000, allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}, seccompProfile: {type: RuntimeDefault}}
    volumeMounts:
    - {name: data, mountPath: /data}
    - {name: share, mountPath: /share}
    - {name: about, mountPath: /about}
    - {name: memory, mountPath: /memory}
    - {name: data, mountPath: /one, subPath: order, readOnly: true}
  volumes:
  - {name: data, emptyDir: {}}
  - {name: memory, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: share, hostPath: {path: $work/share, type: Directory}}
  - {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  securityContext: {fsGroup: 2000}
YAML
}
web one
chmod 1777 "$work/share"
await 'web is ready' '^Running True$' 60 ready web
check 'the order of the containers' '^first sidecar last web$' "$(enter spdy web web cat /data/order </dev/null | xargs)"
check 'the post-start hook' '^hook$' "$(enter spdy web web cat /data/hook </dev/null)"
check 'subPath' '^first$' "$(enter spdy web web head -n1 /one </dev/null)"
check 'downward API' '^app="web"$' "$(enter spdy web web cat /about/labels </dev/null)"
check 'environment' "^one web-here $(pod web .status.podIP)\$" "$(enter spdy web web sh -c 'echo $ROUND $POD $IP' </dev/null)"
check 'user and group' '^1000 2000$' "$(enter spdy web web sh -c 'echo $(id -u) $(stat -c %g /data)' </dev/null)"
check 'read-only root' 'Read-only' "$(enter spdy web web touch /x </dev/null 2>&1 || true)"
check 'memory volume' '^tmpfs 1024$' "$(enter spdy web web sh -c 'df -k /memory | awk "NR==2{print \$1, \$2}"' </dev/null)"
check 'logs' '^started$' "$(get /containerLogs/default/web-here/web)"
for protocol in spdy websocket; do
	check "exec, $protocol, input" '^4096$' "$(head -c 4096 /dev/zero | enter $protocol web web sh -c 'head -c 4096 | wc -c')"
	code=0
	enter $protocol web web sh -c 'exit 7' </dev/null || code=$?
	check "exec, $protocol, exit code" '^7$' "$code"
	for _ in $(seq 10); do # the answer passes a proxy that is still sending
		code=0
		enter $protocol web web sh -c 'exit 7' <"$work/image.tar" 2>/dev/null || code=$?
		check "exec, $protocol, exit code with input under way" '^7$' "$code"
	done
done
check 'port forward' '^first$' "$(printf 'GET /order HTTP/1.0\r\n\r\n' | "$here/bin/stream" forward $port/portForward/default/web-here 8080)"
check 'the pod from the machine' '^first$' "$(curl -sS "http://$(pod web .status.podIP):8080/order")"

# More pods: one that fails, one of the host's network, one of a user namespace,
# one whose containers see each other.
manifest fails <<YAML
apiVersion: v1
kind: Pod
metadata: {name: fails, namespace: default}
spec:
  restartPolicy: OnFailure
  containers:
  - {name: c, image: $image, command: [sh, -c, 'echo why it failed >/dev/termination-log; exit 3']}
YAML
manifest once <<YAML
apiVersion: v1
kind: Pod
metadata: {name: once, namespace: default}
spec:
  restartPolicy: Never
  containers:
  - {name: c, image: $image, command: [sh, -c, 'for i in \$(seq 2000); do echo line \$i; done']}
YAML
manifest host <<YAML
apiVersion: v1
kind: Pod
metadata: {name: host, namespace: default}
spec:
  hostNetwork: true
  hostPID: true
  containers:
  - {name: c, image: $image, command: [sleep, '100000'], resources: {limits: {cpu: 100m, memory: 20Mi}}}
YAML
manifest user <<YAML
apiVersion: v1
kind: Pod
metadata: {name: user, namespace: default}
spec:
  hostUsers: false
  shareProcessNamespace: true
  hostname: named
  containers:
  - {name: c, image: $image, command: [sleep, '100000'], volumeMounts: [{name: v, mountPath: /v}]}
  - {name: d, image: $image, command: [sh, -c, 'while :; do echo tick; sleep 0.01; done']}
  volumes: [{name: v, emptyDir: {}}]
YAML
await 'the host pod is ready' '^Running True$' 60 ready host
check "the host's network" ' node0' "$(enter spdy host c ip -o addr </dev/null)"
await 'the pod with a user namespace is ready' '^Running True$' 60 ready user
check 'user namespace' '^0 +[1-9][0-9]+ +65536$' "$(enter spdy user c sh -c 'echo $(cat /proc/self/uid_map)' </dev/null)"
check 'a volume in it' '^0 0$' "$(enter spdy user c sh -c 'touch /v/f; stat -c "%u %g" /v/f' </dev/null)"
check 'shared processes' 'tick' "$(enter spdy user c ps </dev/null)"
check 'host name' '^named$' "$(enter spdy user c hostname </dev/null)"
await 'a pod that ends' '^Succeeded False$' 60 ready once
check 'all of its log' '^2000$' "$(get '/containerLogs/default/once-here/c' | wc -l)"
check 'the end of its log' '^line 2000$' "$(get '/containerLogs/default/once-here/c?tailLines=1')"
await 'a restart after a failure' '^[1-9]' 60 container fails c .restartCount
check 'exit code' '^3 why it failed$' "$(container fails c '.lastState.terminated | "\(.exitCode) \(.message)"' | xargs)"
await 'back-off' CrashLoopBackOff 60 container fails c .state.waiting.reason

# What a metrics pipeline reads, all of it out of the CRI.
summary() { get /stats/summary | jq -r ".pods[] | select(.podRef.name == \"$1-here\") | $2"; }
await 'CPU and memory of containers' '^web true true$' 60 summary web \
	'.containers[] | select(.name == "web") | "\(.name) \(.cpu.usageCoreNanoSeconds > 0) \(.memory.workingSetBytes > 0)"'
check 'CPU and memory of the pod' '^true true$' "$(summary web '"\(.cpu.usageCoreNanoSeconds > 0) \(.memory.workingSetBytes > 0)"')"
check "the pod's processes" '^[3-9]$' "$(summary web .process_stats.process_count)"
check "the pod's network" '^eth0 true$' "$(summary web '.network | "\(.name) \(.rxBytes > 0)"')"
check "a container's writable layer and log" '^true true$' "$(summary user '.containers[] | select(.name == "d") | "\(.rootfs.usedBytes > 0) \(.logs.usedBytes > 0)"')"
await "the pod's volumes" '^data true$' 30 summary web '.volume // [] | .[] | "\(.name) \(.inodesUsed > 1)"'
check "the images' file system" '^true$' "$(get /stats/summary | jq '.node.runtime.imageFs.usedBytes > 0')"
await '/metrics/resource' 'container_cpu_usage_seconds_total\{container="web",namespace="default",pod="web-here"\}' 30 get /metrics/resource
await '/metrics/cadvisor' 'container_memory_working_set_bytes\{.*container="web".*pod="web-here"' 30 get /metrics/cadvisor
check '/metrics/cadvisor, network' 'container_network_receive_bytes_total\{.*interface="eth0".*pod="web-here"' "$(get /metrics/cadvisor)"

# The kubelet rotates a log that grows.
rotated() { find "$work/logs/" -path '*_user-here_*/d/0.log.2*' | wc -l; }
await 'rotation' '^[1-9]' 60 rotated
check 'the log after a rotation' '^tick$' "$(get '/containerLogs/default/user-here/d?tailLines=1')"

# Whoever restarts, the containers that run are the same ones.
ids() { pod "$1" '.status | .initContainerStatuses // [], .containerStatuses | .[] | "\(.name) \(.containerID) \(.restartCount)"'; }
web_before=$(ids web) user_before=$(ids user)
crash $kubelet
start_kubelet true
await 'web after a kubelet was killed' '^Running True$' 60 ready web
check 'the same containers after a kubelet was killed' "^$web_before\$" "$(ids web)"
crash $node
start_node
await 'exec after the runtime was killed' '^x$' 30 enter websocket web web echo x
sleep 6 # the kubelet's probes and its relisting have met the new one
await 'web after the runtime was killed' '^Running True$' 60 ready web
check 'the same containers after the runtime was killed' "^$web_before$user_before\$" "$(ids web)$(ids user)"
check 'the log goes on' '^tick$' "$(get '/containerLogs/default/user-here/d?tailLines=1')"
check 'both are there' '^first sidecar last web$' "$(enter spdy web web cat /data/order </dev/null | xargs)"

# What ends while nobody looks is known afterwards.
inspect() { crictl inspect "$(crictl ps -q --name "^$2\$" --label "io.kubernetes.pod.name=$1-here")"; }
victim=$(inspect web web | jq -r .info.pid)
crash $kubelet
crash $node
kill -9 "$victim"
start_node
start_kubelet false
await 'a container killed meanwhile is started again' '^1$' 60 container web web .restartCount
check 'how it ended' '^137 Error$' "$(container web web '.lastState.terminated | "\(.exitCode) \(.reason)"')"
await 'web is ready again' '^Running True$' 60 ready web
check 'the sidecar has not been touched' '^0$' "$(container web sidecar .restartCount)"
check 'out of memory' '^137$' "$(enter spdy web web sh -c 'tail /dev/zero' </dev/null >/dev/null 2>&1 || echo $?)"

# Without the gate the kubelet counts by itself, by the control groups' names.
await 'statistics of a kubelet that counts by itself' '^true$' 60 summary web '.containers[] | select(.name == "web") | .memory.workingSetBytes > 0'

# A liveness probe that fails ends a container, with grace.
pkill_httpd() { enter spdy web web sh -c 'kill $(pidof httpd)' </dev/null; }
pkill_httpd
await 'a restart for liveness' '^2$' 60 container web web .restartCount

# A changed manifest is another pod; the first one ends as it asks to.
rm -f "$work/share/end"
uid=$(pod web '.metadata.annotations["kubernetes.io/config.hash"]')
web two
await 'the changed pod' '^two$' 90 enter spdy web web sh -c 'echo $ROUND' </dev/null
check 'another UID' '^other$' "$([ "$(pod web '.metadata.annotations["kubernetes.io/config.hash"]')" = "$uid" ] || echo other)"
check 'the order of the end' '^hook web ends sidecar ends$' "$(xargs <"$work/share/end")"

# Removed manifests end their pods, and nothing is left of them.
rm -f "$manifests"/*.yaml
await 'the end of all pods' '^$' 90 sh -c "'$here/bin/crictl' --config /dev/null -r $endpoint pods -q"
left() { find /sys/fs/cgroup -path "*$group/*" -type d -name 'pod*' 2>/dev/null; ls "$work/kubelet/pods"; ip -o link | grep -o 'unip[0-9a-f]\{11\}'; true; }
await 'nothing left' '^$' 60 left
echo "kubelet $("$kubelet_program" --version | cut -d' ' -f2): $passed checks passed"
