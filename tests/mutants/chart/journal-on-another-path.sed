# file: deploy/helm/weni-edge/templates/statefulset.yaml
# The journal's volume is not where the journal is: it is lost with the pod.
s#mountPath: /var/lib/weni-edge#mountPath: /var/lib/journal#
