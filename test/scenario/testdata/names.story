# The documentation's custom-dns, hostaliases-pod and hostname with subdomain.

pod:
  ? sandbox ready
  ? Running
  ? ready
  ? not ready
  ? ready
  ? not ready
  Succeeded

app:
  started
  completed

log app:
  busybox-1
  search ns1.svc.cluster-domain.example my.dns.search.suffix
  nameserver 192.0.2.1
  options ndots:2 edns0
  127.0.0.1	foo.local	bar.local
  busybox-1.busybox-subdomain.default.svc
