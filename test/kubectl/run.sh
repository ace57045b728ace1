#!/bin/bash
# A session with every verb of kubectl against a node with real pods, as a
# transcript: what was typed and what was printed.
#
#   test/kubectl/run.sh UNIPOD [KUBECTL...]
#
# The session is held by unipod's own commands and by each KUBECTL (a stock
# one; by default kubectl of the version in go.mod, built, and the one on PATH).
# The transcript of each goes to standard output, and into TRANSCRIPTS/NAME.txt
# when that is set. A command whose exit code isn't the expected one ends the
# script with an error, after all have been tried.
#
# Everything happens in network and mount namespaces and directories of its own.
# shellcheck disable=SC2016 # what is in single quotes is for the container's shell
set -euo pipefail
unipod=$(readlink -f "$1")
here=$(dirname "$(readlink -f "$0")")
repo=$here/../..
shift

if [ -z "${KUBECTL_INSIDE:-}" ]; then
	if [ $# -eq 0 ]; then
		mkdir -p "$here/bin"
		release=$(sed -n 's/^\tk8s\.io\/kubernetes \(v[0-9.]*\)$/\1/p' "$repo/go.mod")
		minor=${release#v1.}
		set_version="-X k8s.io/component-base/version"
		(cd "$repo" && CGO_ENABLED=0 go build -trimpath -tags containers_image_openpgp -o "$here/bin/kubectl" \
			-ldflags "-s -w $set_version.gitVersion=$release $set_version.gitMajor=1 $set_version.gitMinor=${minor%.*}" k8s.io/kubernetes/cmd/kubectl)
		set -- "$here/bin/kubectl"
		if command -v kubectl >/dev/null; then set -- "$@" "$(command -v kubectl)"; fi
	fi
	KUBECTL_INSIDE=1 exec unshare -m -n --propagation slave "$0" "$unipod" "$@"
fi

mount --make-rshared /
ip link set lo up
export LC_ALL=C.UTF-8
work=$(mktemp -d /tmp/kubectl.XXXXXX)
export HOME=$work UNIPOD_ROOT=$work/root UNIPOD_RUN=$work/run
unset KUBECONFIG
pids=()
end() {
	set +e
	for p in "${pids[@]}"; do kill "$p" 2>/dev/null; done
	"$unipod" uninstall --yes >/dev/null 2>&1
	wait
	rm -rf "$work"
}
trap end EXIT

image=localhost/unipod-demo:1
"$repo/examples/demo/image.sh" $image "$work/image.tar" >/dev/null
"$unipod" image load "$work/image.tar" >/dev/null
"$unipod" serve --manifests "$work/none" >"$work/serve.log" 2>&1 &
pids+=($!)
for _ in $(seq 200); do
	"$unipod" get nodes 2>/dev/null | grep -q ' Ready' && break
	sleep 0.1
done
node=$("$unipod" get nodes -o 'jsonpath={.items[0].metadata.name}')

failed=0
# try CODE COMMAND: types a command, which must end with the code.
try() {
	local want=$1 code=0
	shift
	printf '\n$ %s\n' "${*//$work\//}"
	timeout 90 bash -c "$*" 2>&1 </dev/null || code=$?
	if [ "$code" != "$want" ]; then
		printf '!!! exit code %d, want %d\n' "$code" "$want"
		echo "$name: exit code $code, want $want: $*" >>"$work/failed"
		failed=1
	elif [ "$code" != 0 ]; then
		printf '(exit code %d)\n' "$code"
	fi
}
# since MINOR: is this kubectl at least so new?
since() { [ "$minor" -ge "$1" ]; }

session() {
	cd "$work"
	cat >web.yaml <<-YAML
		apiVersion: apps/v1
		kind: Deployment
		metadata: {name: web}
		spec:
		  replicas: 2
		  selector: {matchLabels: {app: web}}
		  template:
		    metadata: {labels: {app: web}}
		    spec:
		      terminationGracePeriodSeconds: 1
		      containers:
		      - name: httpd
		        image: $image
		        command: [sh, -c, "mkdir /www; echo hello > /www/index.html; echo serving; exec httpd -f -p 8080 -h /www"]
		        ports: [{containerPort: 8080}]
		        resources: {requests: {cpu: 10m, memory: 8Mi}}
	YAML
	mkdir -p base
	printf 'resources: [map.yaml]\nnamePrefix: k-\n' >base/kustomization.yaml
	printf 'apiVersion: v1\nkind: ConfigMap\nmetadata: {name: map}\ndata: {a: one}\n' >base/map.yaml

	try 0 kubectl version
	try 0 kubectl cluster-info
	try 0 kubectl config get-contexts
	try 0 kubectl api-versions
	try 0 kubectl api-resources --api-group=apps
	try 0 kubectl get nodes
	try 0 kubectl explain pod.spec.hostname
	try 0 kubectl auth can-i create deployments
	if since 28; then try 0 kubectl auth whoami; fi

	try 1 kubectl diff -f web.yaml
	try 0 kubectl apply -f web.yaml
	try 0 kubectl rollout status deployment/web --timeout=60s
	try 0 kubectl get deployment,replicaset,pods
	try 0 kubectl get pods -l app=web -o 'custom-columns=NAME:.metadata.name,PHASE:.status.phase'
	try 0 kubectl wait --for=condition=Ready pod -l app=web --timeout=60s
	try 0 kubectl describe deployment web
	try 0 kubectl logs deployment/web
	try 0 kubectl logs -l app=web --prefix --tail=1
	try 0 kubectl exec deployment/web -- cat /www/index.html
	try 7 kubectl exec deployment/web -- sh -c '"exit 7"'
	try 0 'echo from standard input | kubectl exec -i deployment/web -- tr a-z A-Z'
	pod=$(kubectl get pods -l app=web -o 'jsonpath={.items[0].metadata.name}')
	echo copied >local.txt
	try 0 kubectl cp local.txt "$pod:/www/copied.txt"
	try 0 kubectl cp "$pod:/www/copied.txt" back.txt '&& cat back.txt'
	try 0 'timeout 4 kubectl port-forward '"$pod"' 18080:8080 & sleep 2; curl -s http://127.0.0.1:18080/; wait'
	try 0 'timeout 4 kubectl proxy --port=18081 & sleep 2; curl -s http://127.0.0.1:18081/api/v1/namespaces/default | grep -m1 phase; wait'

	try 0 kubectl expose deployment web --port=80 --target-port=8080
	try 0 kubectl get service web
	try 0 kubectl scale deployment web --replicas=3
	try 0 kubectl rollout status deployment/web --timeout=60s
	try 0 kubectl autoscale deployment web --min=1 --max=3
	try 0 kubectl get horizontalpodautoscaler
	try 0 kubectl delete horizontalpodautoscaler web
	try 0 kubectl set env deployment/web COLOUR=blue
	try 0 kubectl rollout status deployment/web --timeout=60s
	try 0 kubectl rollout history deployment/web
	try 0 kubectl rollout undo deployment/web
	try 0 kubectl rollout restart deployment/web
	try 0 kubectl rollout status deployment/web --timeout=60s
	try 0 kubectl label deployment web tier=front
	try 0 kubectl annotate deployment web note=first
	try 0 kubectl patch deployment web -p "'"'{"spec":{"replicas":1}}'"'"
	try 0 'kubectl get deployment web -o yaml | sed "s/tier: front/tier: back/; /resourceVersion/d" | kubectl replace -f -'
	try 0 KUBE_EDITOR='"sed -i s/first/second/"' kubectl edit deployment web
	try 0 kubectl get deployment web -o "'jsonpath={.metadata.labels.tier} {.metadata.annotations.note}{\"\\n\"}'"

	try 0 kubectl run once --image=$image --restart=Never --command -- sh -c '"echo ran; exit 0"'
	if since 23; then try 0 kubectl wait pod/once --for="'jsonpath={.status.phase}=Succeeded'" --timeout=60s; else sleep 3; fi
	try 0 kubectl logs once
	try 0 kubectl run loop --image=$image --restart=Never --command -- sh -c '"while read l; do echo got \$l; done < /dev/zero & while sleep 1; do echo tick; done"'
	try 0 kubectl wait --for=condition=Ready pod/loop --timeout=60s
	try 124 timeout 3 kubectl attach loop
	if since 26; then
		try 0 kubectl events --for pod/loop
		try 0 kubectl debug loop --image=$image --profile=general -c look -- sh -c '"echo inside"'
		sleep 2
		try 0 kubectl logs loop -c look
	else
		try 0 kubectl get events --field-selector involvedObject.name=loop
	fi
	try 0 kubectl top node
	try 0 kubectl top pod

	try 0 kubectl create namespace other
	try 0 kubectl create configmap map --from-literal=a=1 -n other
	try 0 kubectl create secret generic secret --from-literal=password=s3cret -n other
	try 0 kubectl get configmap,secret -n other
	try 0 kubectl create job j --image=$image -n other -- sh -c '"echo done"'
	try 0 kubectl wait --for=condition=complete job/j -n other --timeout=60s
	try 0 kubectl logs job/j -n other
	try 0 kubectl create serviceaccount robot -n other
	try 0 kubectl create rolebinding robot --clusterrole=view --serviceaccount=other:robot -n other
	try 0 kubectl auth can-i list pods -n other --as=system:serviceaccount:other:robot
	try 1 kubectl auth can-i delete pods -n other --as=system:serviceaccount:other:robot
	if since 24; then try 0 'kubectl create token robot -n other | cut -d. -f1 | base64 -d 2>/dev/null | grep -o ES256'; fi
	try 0 kubectl kustomize base
	try 0 kubectl apply -k base -n other
	try 0 kubectl delete namespace other

	if command -v openssl >/dev/null; then
		openssl req -new -newkey rsa:2048 -nodes -keyout jane.key -subj /CN=jane -out jane.csr 2>/dev/null
		cat >csr.yaml <<-YAML
			apiVersion: certificates.k8s.io/v1
			kind: CertificateSigningRequest
			metadata: {name: jane}
			spec:
			  request: $(base64 -w0 jane.csr)
			  signerName: kubernetes.io/kube-apiserver-client
			  usages: [client auth]
		YAML
		try 0 kubectl create -f csr.yaml
		try 0 kubectl certificate approve jane
		sleep 1
		try 0 'kubectl get csr jane -o "jsonpath={.status.certificate}" | base64 -d | openssl x509 -noout -subject'
		try 0 kubectl delete csr jane
	fi

	try 0 kubectl cordon "$node"
	try 0 kubectl get nodes
	try 0 kubectl uncordon "$node"
	try 0 kubectl taint nodes "$node" busy=yes:PreferNoSchedule
	try 0 kubectl taint nodes "$node" busy-
	if since 21; then try 0 kubectl drain "$node" --force --ignore-daemonsets --delete-emptydir-data --timeout=60s; else try 0 kubectl drain "$node" --force --ignore-daemonsets --timeout=60s; fi
	try 0 kubectl uncordon "$node"

	try 0 kubectl delete -f web.yaml
	try 0 kubectl delete service web
	try 1 kubectl get pod nothing
	try 0 kubectl wait --for=delete pod -l app=web --timeout=60s
	try 0 kubectl get all
}

mkdir "$work/bin"
export PATH=$work/bin:$PATH
for client in "" "$@"; do
	# What is called kubectl in this session.
	if [ -z "$client" ]; then
		name=unipod minor=37
		# Without the word kubectl, but where unipod has a command of the name.
		printf '#!/bin/sh\nif [ "$1" = version ]; then exec %s kubectl "$@"; fi\nexec %s "$@"\n' "$unipod" "$unipod" >"$work/bin/kubectl"
	else
		export KUBECONFIG=$work/run/kubeconfig
		minor=$("$client" version --client -o json | sed -n 's/.*"minor": "\([0-9]*\).*/\1/p' | head -1)
		name=kubectl-1.$minor
		printf '#!/bin/sh\nexec %s "$@"\n' "$client" >"$work/bin/kubectl"
	fi
	chmod 0755 "$work/bin/kubectl"
	echo "=== $name"
	if [ -n "${TRANSCRIPTS:-}" ]; then
		mkdir -p "$TRANSCRIPTS"
		session > >(tee "$TRANSCRIPTS/$name.txt")
	else
		session
	fi
done
if [ $failed != 0 ]; then
	echo "=== failed"
	cat "$work/failed"
	exit 1
fi
echo "=== every command did what it should"
