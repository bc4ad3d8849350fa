{{- define "palisade.name" -}}
{{ printf "%s-palisade" .Release.Name | trunc 52 | trimSuffix "-" }}
{{- end }}

{{- define "palisade.labels" -}}
app.kubernetes.io/name: palisade
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* What selects the pods of one part. */}}
{{- define "palisade.selector" -}}
app.kubernetes.io/name: palisade
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "palisade.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "palisade.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
{{- end }}

{{/* host:port of what the gateway stands before. */}}
{{- define "palisade.upstream" -}}
{{- if eq .Values.mode "standalone" -}}
{{ include "palisade.name" . }}-backend:8090
{{- else -}}
127.0.0.1:{{ .Values.service.port | default 8090 }}
{{- end -}}
{{- end }}

{{/* The policy: the operator's, or the chart's own with the key set where it is. */}}
{{- define "palisade.policy" -}}
{{- if .Values.policy -}}
{{ .Values.policy }}
{{- else -}}
{{ .Files.Get "files/policy.toml" | replace "127.0.0.1:8090" (include "palisade.upstream" .) }}
{{- end -}}
{{- end }}

{{- define "palisade.gatewayContainer" -}}
name: gateway
image: {{ .Values.gateway.image | quote }}
args: [run]
env:
  - { name: PALISADE_PROFILE, value: production }
  - { name: PALISADE_GATEWAY__ADMIN__LISTEN, value: "0.0.0.0:8081" }
  - { name: PALISADE_GATEWAY__UPSTREAMS__BACKEND__ADDRESSES, value: {{ include "palisade.upstream" . | quote }} }
  {{- if not .Values.service.container }}
  - { name: PALISADE_GATEWAY__UPSTREAMS__BACKEND__HEALTH, value: /health/ready }
  {{- end }}
  - { name: PALISADE_GATEWAY__POLICY__FILE, value: /etc/palisade-policy/policy.toml }
  - { name: PALISADE_GATEWAY__STATE__DIR, value: /var/lib/palisade }
  {{- with .Values.redis.url }}
  - { name: PALISADE_GATEWAY__REDIS__URL, value: {{ . | quote }} }
  {{- end }}
  {{- with .Values.telemetry.otlpEndpoint }}
  - { name: PALISADE_GATEWAY__TELEMETRY__OTLP_ENDPOINT, value: {{ . | quote }} }
  - { name: PALISADE_GATEWAY__TELEMETRY__PROTOCOL, value: {{ $.Values.telemetry.protocol }} }
  - { name: PALISADE_GATEWAY__TELEMETRY__SAMPLE_RATIO, value: {{ $.Values.telemetry.sampleRatio | quote }} }
  {{- end }}
  {{- range $name, $value := .Values.gateway.env }}
  - { name: {{ $name }}, value: {{ $value | quote }} }
  {{- end }}
ports:
  - { name: http, containerPort: 8080 }
  - { name: admin, containerPort: 8081 }
startupProbe:
  httpGet: { path: /health/startup, port: admin }
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: { path: /health/live, port: admin }
readinessProbe:
  httpGet: { path: /health/ready, port: admin }
  periodSeconds: 2
resources: {{- toYaml .Values.gateway.resources | nindent 2 }}
securityContext: {{- include "palisade.containerSecurity" . | nindent 2 }}
volumeMounts:
  - { name: policy, mountPath: /etc/palisade-policy, readOnly: true }
  - { name: gateway-secrets, mountPath: /run/secrets, readOnly: true }
  - { name: gateway-state, mountPath: /var/lib/palisade }
{{- end }}

{{- define "palisade.backendContainer" -}}
name: backend
image: {{ .Values.backend.image | quote }}
args: [serve]
env:
  - { name: PALISADE_PROFILE, value: production }
  - { name: PALISADE_BACKEND__SERVER__LISTEN, value: {{ ternary "0.0.0.0:8090" "127.0.0.1:8090" (eq .Values.mode "standalone") | quote }} }
  - { name: PALISADE_BACKEND__DATABASE__PATH, value: /var/lib/palisade/palisade.db }
  {{- if eq .Values.mode "sidecar" }}
  # The gateway beside it is told to leave only when this container has ended: until then requests still come.
  - { name: PALISADE_BACKEND__SERVER__DRAIN_DELAY, value: 8s }
  {{- end }}
  {{- with .Values.telemetry.otlpEndpoint }}
  - { name: PALISADE_BACKEND__TELEMETRY__OTLP_ENDPOINT, value: {{ . | quote }} }
  - { name: PALISADE_BACKEND__TELEMETRY__PROTOCOL, value: {{ $.Values.telemetry.protocol }} }
  {{- end }}
  {{- range $name, $value := .Values.backend.env }}
  - { name: {{ $name }}, value: {{ $value | quote }} }
  {{- end }}
ports:
  - { name: backend, containerPort: 8090 }
# By the program itself, for in sidecar mode nobody outside the pod reaches it.
startupProbe:
  exec: { command: [/usr/local/bin/backend-sqlite, healthcheck] }
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  exec: { command: [/usr/local/bin/backend-sqlite, healthcheck] }
  timeoutSeconds: 5
resources: {{- toYaml .Values.backend.resources | nindent 2 }}
securityContext: {{- include "palisade.containerSecurity" . | nindent 2 }}
volumeMounts:
  - { name: backend-secrets, mountPath: /run/secrets, readOnly: true }
  - { name: data, mountPath: /var/lib/palisade }
{{- end }}

{{- define "palisade.gatewayVolumes" -}}
- name: policy
  configMap: { name: {{ include "palisade.name" . }}-policy }
- name: gateway-state
  emptyDir: {}
{{- end }}

{{/* The keys of the Secret that one container needs, and no others. One that is not there is no fault of the volume: the
     program says at its start which of them it misses. */}}
{{- define "palisade.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .root.Values.secretName | quote }}
    defaultMode: 288
    optional: true
    items:
      {{- range .keys }}
      - { key: {{ . | quote }}, path: {{ . | quote }} }
      {{- end }}
{{- end }}

{{- define "palisade.gatewaySecrets" -}}
{{- $keys := concat (list "GATEWAY_TOKEN" "ADMIN_TOKEN" "METRICS_TOKEN" "JWT_SECRET" "REDIS_PASSWORD") (.Values.gateway.secretKeys | default list) -}}
{{ include "palisade.secretVolume" (dict "root" . "name" "gateway-secrets" "keys" $keys) }}
{{- end }}

{{- define "palisade.backendSecrets" -}}
{{- $keys := concat (list "GATEWAY_TOKEN" "METRICS_TOKEN" "JWT_KEY" "JWT_SECRET" "SMTP_PASSWORD") (.Values.backend.secretKeys | default list) -}}
{{ include "palisade.secretVolume" (dict "root" . "name" "backend-secrets" "keys" $keys) }}
{{- end }}

{{- define "palisade.dataClaim" -}}
metadata: { name: data }
spec:
  accessModes: [ReadWriteOnce]
  {{- with .Values.backend.storage.className }}
  storageClassName: {{ . | quote }}
  {{- end }}
  resources: { requests: { storage: {{ .Values.backend.storage.size }} } }
{{- end }}
