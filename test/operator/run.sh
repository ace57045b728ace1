#!/bin/bash
# Programs that none of us wrote, against `unipod serve`: Kubernetes' own
# sample operator (k8s.io/sample-controller, at the version tools/go.mod pins)
# and helm with the chart that `helm create` makes. Both run as on any cluster:
# helm knows a kubeconfig and nothing else, and the operator, a pod, not even
# that.
#
#   test/operator/run.sh UNIPOD
#
# What they run is called nginx:latest and comes from a registry on the
# loopback, started here: busybox's httpd under that name.
set -euo pipefail
unipod=$(readlink -f "$1")
here=$(dirname "$(readlink -f "$0")")

if [ -z "${OPERATOR_INSIDE:-}" ]; then
	bin=${OPERATOR_BIN:-$here/bin}
	mkdir -p "$bin"
	(cd "$here/tools" && CGO_ENABLED=0 go build -trimpath -o "$bin" helm.sh/helm/v3/cmd/helm k8s.io/sample-controller)
	examples=$(cd "$here/tools" && go list -m -f '{{.Dir}}' k8s.io/sample-controller)/artifacts/examples
	mkdir -p /etc/unipod
	# A network and mounts of its own, so that nothing of the machine is touched.
	OPERATOR_INSIDE=1 OPERATOR_EXAMPLES=$examples OPERATOR_BIN=$bin PATH=$bin:$PATH exec unshare -n -m --propagation slave "$0" "$unipod"
fi

ip link set lo up
mount -t tmpfs tmpfs /etc/unipod
mkdir -p /etc/unipod/certs.d/docker.io
printf 'server = "https://docker.io"\n[host."http://127.0.0.1:5001"]\n  capabilities = ["pull", "resolve"]\n' \
	>/etc/unipod/certs.d/docker.io/hosts.toml

work=$(mktemp -d /var/tmp/unipod-operator.XXXXXX)
run=$(mktemp -d /run/unipod-operator.XXXXXX)
children=()
finish() {
	code=$?
	trap - EXIT
	if [ $code != 0 ]; then
		echo "--- failed; the node's log:"
		tail -n 40 "$work/serve.log" || true
		"$unipod" --run "$run" logs -n operators deploy/sample-controller --tail=20 || true
	fi
	"$unipod" --run "$run" delete namespace demo shop operators --ignore-not-found --timeout=30s >/dev/null 2>&1 || true
	kill "${children[@]}" 2>/dev/null || true
	wait
	rm -rf "$work" "$run"
	exit $code
}
trap finish EXIT

printf 'version: 0.1\nstorage:\n  filesystem:\n    rootdirectory: %s/registry\nhttp:\n  addr: 127.0.0.1:5001\n' "$work" >"$work/registry.yml"
docker-registry serve "$work/registry.yml" >"$work/registry.log" 2>&1 &
children+=($!)
"$here/../../examples/demo/image.sh" nginx:latest "$work/nginx.tar" \
	'["sh","-c","echo hello > /www/index.html; exec httpd -f -p 80 -h /www"]'
for _ in $(seq 50); do curl -sf http://127.0.0.1:5001/v2/ >/dev/null && break; sleep 0.1; done
skopeo copy -q --insecure-policy --dest-tls-verify=false "docker-archive:$work/nginx.tar" docker://127.0.0.1:5001/library/nginx:latest

"$unipod" --root "$work/root" --run "$run" serve --manifests "$work/manifests" --eviction-hard= --image-gc-high-threshold=100 >"$work/serve.log" 2>&1 &
children+=($!)
export KUBECONFIG=$run/kubeconfig
k() { "$unipod" kubectl "$@"; }
for _ in $(seq 100); do [ -s "$KUBECONFIG" ] && k get --raw /readyz >/dev/null 2>&1 && break; sleep 0.1; done

# until WHAT COMMAND...: it becomes true within a minute.
until_true() {
	local what=$1
	shift
	for _ in $(seq 300); do
		if "$@" >/dev/null 2>&1; then
			echo "ok: $what"
			return
		fi
		sleep 0.2
	done
	echo "FAILED: $what"
	return 1
}
is() { [ "$(k get "$1" -n "$2" "$3" -o jsonpath="$4")" = "$5" ]; }
none() { [ -z "$(k get "$1" -n "$2" -o name)" ]; }

echo "=== sample-controller"
k create namespace demo
k apply -f "$OPERATOR_EXAMPLES/crd-status-subresource.yaml"
k wait --for=condition=Established crd/foos.samplecontroller.k8s.io --timeout=30s
k apply -f - <<EOF
apiVersion: v1
kind: Namespace
metadata: {name: operators}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: sample, namespace: operators}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: sample}
rules:
- {apiGroups: [samplecontroller.k8s.io], resources: [foos, foos/status], verbs: ["*"]}
- {apiGroups: [apps], resources: [deployments], verbs: ["*"]}
- {apiGroups: ["", events.k8s.io], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: sample}
subjects: [{kind: ServiceAccount, name: sample, namespace: operators}]
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: sample}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: sample-controller, namespace: operators}
spec:
  selector: {matchLabels: {app: sample-controller}}
  template:
    metadata: {labels: {app: sample-controller}}
    spec:
      serviceAccountName: sample
      containers:
      - name: operator
        image: nginx:latest
        command: [/operator]
        volumeMounts: [{name: operator, mountPath: /operator}]
      volumes: [{name: operator, hostPath: {path: $OPERATOR_BIN/sample-controller, type: File}}]
EOF
k rollout status deployment/sample-controller -n operators --timeout=60s
k apply -n demo -f "$OPERATOR_EXAMPLES/example-foo.yaml"
until_true "the operator made its Deployment available" is foos.samplecontroller.k8s.io demo example-foo '{.status.availableReplicas}' 1
k patch foo example-foo -n demo --type=merge -p '{"spec":{"replicas":3}}'
until_true "the operator scaled it" is deployment demo example-foo '{.status.readyReplicas}' 3
until_true "and says so" is foos.samplecontroller.k8s.io demo example-foo '{.status.availableReplicas}' 3
if k patch foo example-foo -n demo --type=merge -p '{"spec":{"replicas":11}}' 2>"$work/refused"; then
	echo "FAILED: a value above the schema's maximum was taken"
	exit 1
fi
grep -q 'should be less than or equal to 10' "$work/refused"
echo "ok: the schema is kept"
k delete foo example-foo -n demo
until_true "its Deployment went with it" none deployments demo
until_true "and its Pods" none pods demo

echo "=== helm"
helm create "$work/shop" >/dev/null
helm install shop "$work/shop" --namespace shop --create-namespace --wait --timeout 60s \
	--set image.tag=latest --set replicaCount=2 --set livenessProbe.periodSeconds=1
until_true "two replicas are ready" is deployment shop shop '{.status.readyReplicas}' 2
until_true "the Service's endpoints are there" [ -n "$(k get endpointslices -n shop -o jsonpath='{.items[0].endpoints[1].addresses[0]}')" ]
helm upgrade shop "$work/shop" --namespace shop --wait --timeout 60s --reuse-values --set replicaCount=1
until_true "upgraded" is deployment shop shop '{.status.replicas}' 1
helm rollback shop 1 --namespace shop --wait --timeout 60s
until_true "rolled back" is deployment shop shop '{.status.readyReplicas}' 2
[ "$(helm list -n shop -o json | jq -r '.[0].status')" = deployed ]
echo "ok: helm lists it"
helm uninstall shop --namespace shop --wait --timeout 60s
until_true "uninstalled" none all shop
echo "=== done"
