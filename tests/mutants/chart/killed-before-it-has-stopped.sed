# file: deploy/helm/weni-edge/templates/_helpers.tpl
# A pod is killed while it still takes calls in progress.
s/\{\{- add \.Values\.preStopSeconds .*/{{- 30 }}/
