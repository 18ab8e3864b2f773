{{- define "weni-edge.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "weni-edge.fullname" -}}
{{- $name := include "weni-edge.name" . }}
{{- $full := contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name) }}
{{- .Values.fullnameOverride | default $full | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "weni-edge.selector" -}}
app.kubernetes.io/name: {{ include "weni-edge.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "weni-edge.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "weni-edge.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "weni-edge.image" -}}
{{- with .Values.image }}
{{- .repository }}{{ if .digest }}@{{ .digest }}{{ else }}:{{ .tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}
{{- end }}

{{- define "weni-edge.secret" -}}
{{- .Values.secrets.existing | default (include "weni-edge.fullname" .) }}
{{- end }}

{{/* Whole seconds of a duration as in weni-edge.toml, rounded up. */}}
{{- define "weni-edge.seconds" -}}
{{- $number := regexFind "^[0-9]+" . | int }}
{{- $unit := regexFind "[a-z]+$" . }}
{{- if eq $unit "ms" }}{{ divf $number 1000 | ceil }}
{{- else }}{{ mul $number (get (dict "s" 1 "m" 60 "h" 3600) $unit) }}{{ end }}
{{- end }}

{{/* Seconds that a pod may take to end: preStop, drain, calls in progress, the publisher's 10 s, and a margin. */}}
{{- define "weni-edge.grace" -}}
{{- $http := .Values.config.http }}
{{- add .Values.preStopSeconds (include "weni-edge.seconds" $http.drain) 10 (include "weni-edge.seconds" $http.body_timeout) 10 10 }}
{{- end }}

{{- define "weni-edge.adminPort" -}}
{{- .Values.config.admin.listen | splitList ":" | last }}
{{- end }}

{{/* The volume's size. It must hold the journal, min_free_bytes, and two segments of 64 MiB. */}}
{{- define "weni-edge.volume" -}}
{{- $size := .Values.persistence.size }}
{{- $unit := get (dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) (regexFind "[A-Za-z]+$" $size) }}
{{- $journal := .Values.config.journal }}
{{- $needed := add ($journal.max_bytes | default 10737418240 | int64) ($journal.min_free_bytes | default 1073741824 | int64) 134217728 }}
{{- if lt (mul (regexFind "^[0-9]+" $size | int64) $unit) $needed }}
{{- fail (printf "persistence.size %s is too small: config.journal.max_bytes + min_free_bytes + 128 MiB are %d bytes" $size $needed) }}
{{- end }}
{{- $size }}
{{- end }}

{{/* The ports that the NetworkPolicy opens. Those of the brokers must be among them. */}}
{{- define "weni-edge.kafkaPorts" -}}
{{- $ports := .Values.networkPolicy.kafkaPorts }}
{{- range $broker := splitList "," .Values.config.kafka.bootstrap_servers }}
{{- if not (has ($broker | splitList ":" | last) (toStrings $ports)) }}
{{- fail (printf "networkPolicy.kafkaPorts does not have the port of %s: the edge would reach no broker" $broker) }}
{{- end }}
{{- end }}
{{- toJson $ports }}
{{- end }}

{{/* A value as TOML. Helm's toToml turns whole numbers into floating-point ones. */}}
{{- define "weni-edge.toml.value" -}}
{{- if kindIs "map" . -}}
{ {{- range $i, $key := keys . | sortAlpha }}{{ if $i }},{{ end }} {{ include "weni-edge.toml.key" $key }} = {{ include "weni-edge.toml.value" (get $ $key) }}{{ end }} }
{{- else if kindIs "slice" . -}}
[{{ range $i, $item := . }}{{ if $i }}, {{ end }}{{ include "weni-edge.toml.value" $item }}{{ end }}]
{{- else if kindIs "float64" . -}}
{{ int64 . }}
{{- else -}}
{{ toJson . }}
{{- end }}
{{- end }}

{{/* A key as TOML, in quotes if it needs them. */}}
{{- define "weni-edge.toml.key" -}}
{{ regexMatch "^[A-Za-z0-9_-]+$" . | ternary . (toJson .) }}
{{- end }}

{{/* weni-edge.toml: values.config and what the chart adds. */}}
{{- define "weni-edge.toml" -}}
{{- $config := deepCopy .Values.config }}
{{- $_ := set $config.journal "directory" "/var/lib/weni-edge" }}
{{- if and (hasKey .Values.secrets.create "ADMIN_TOKEN") (not $config.admin.token_file) }}
{{- $_ := set $config.admin "token_file" "/etc/weni-edge/secrets/ADMIN_TOKEN" }}
{{- end }}
{{- range $key, $_ := $config.kafka.properties }}
{{- if regexMatch "(?i)(password|passphrase|secret|key[._]pem)$" $key }}
{{- fail (printf "config.kafka.properties has %s, and a ConfigMap is no place for a secret: put it into the Secret (secrets.create or secrets.existing), and set %s_file to /etc/weni-edge/secrets/KEY" $key $key) }}
{{- end }}
{{- end }}
{{- range $name, $source := $config.sources }}
{{- if not $source.allow_unauthenticated }}
{{- if not (or $.Values.secrets.existing (hasKey $.Values.secrets.create $name)) }}
{{- fail (printf "source %s has no secret: set secrets.create.%s, or secrets.existing to a Secret with that key" $name $name) }}
{{- end }}
{{- $_ := set $source "secrets_file" (printf "/etc/weni-edge/secrets/%s" $name) }}
{{- end }}
{{- end }}
{{- range $section := without (keys $config) "sources" | sortAlpha }}
[{{ $section }}]
{{- $table := get $config $section }}
{{- range $key := keys $table | sortAlpha }}
{{ include "weni-edge.toml.key" $key }} = {{ include "weni-edge.toml.value" (get $table $key) }}
{{- end }}
{{ end }}
{{- range $name, $source := $config.sources }}
[sources.{{ include "weni-edge.toml.key" $name }}]
{{- range $key := keys $source | sortAlpha }}
{{ include "weni-edge.toml.key" $key }} = {{ include "weni-edge.toml.value" (get $source $key) }}
{{- end }}
{{ end }}
{{- end }}
