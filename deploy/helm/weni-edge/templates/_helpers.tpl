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

{{/* How long a pod may take to end: until SIGTERM, accepting, calls in progress, the publisher's own 10 s, some room. */}}
{{- define "weni-edge.grace" -}}
{{- $http := .Values.config.http }}
{{- add .Values.preStopSeconds (include "weni-edge.seconds" $http.drain) 10 (include "weni-edge.seconds" $http.body_timeout) 10 10 }}
{{- end }}

{{/* A value as TOML. Helm's own toToml makes floating-point numbers of whole ones. */}}
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

{{/* A key as TOML: in quotes where it needs them. */}}
{{- define "weni-edge.toml.key" -}}
{{ regexMatch "^[A-Za-z0-9_-]+$" . | ternary . (toJson .) }}
{{- end }}

{{/* weni-edge.toml: values.config with what the chart knows itself. */}}
{{- define "weni-edge.toml" -}}
{{- $config := deepCopy .Values.config }}
{{- $_ := set $config.journal "directory" "/var/lib/weni-edge" }}
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
