# An image that can't be pulled is tried again after 10 s, doubling; one that
# may not be pulled or has an impossible name waits for its reason.
interrupt after: app · Back-off pulling image

pod:
  ? sandbox ready
  deletion begins, 1 s of grace
  …

wrong:
  InspectFailed: Failed to apply default image tag "unipod.test/NOTHING!": couldn't parse image name "unipod.test/NOTHING!": invalid reference format: repository name (NOTHING!) must be lowercase
  waiting: InvalidImageName: Failed to apply default image tag "unipod.test/NOTHING!": couldn't parse image name "unipod.test/NOTHING!": invalid reference format: repository name (NOTHING!) must be lowercase
  …

app:
  pulling image "ADDRESS:1/nothing:1"
  waiting: ErrImagePull: …
  waiting: ImagePullBackOff: Back-off pulling image "ADDRESS:1/nothing:1": ErrImagePull: …
  …

never:
  ErrImageNeverPull: Container image "unipod.test/nothing:1" is not present with pull policy of Never
  waiting: ErrImageNeverPull: Container image "unipod.test/nothing:1" is not present with pull policy of Never
  …
