{{/* The configuration files of all roles. */}}

{{- define "coffer.config.listen" -}}
listen = "[::]:{{ int (index . 1) }}"
health_listen = "[::]:{{ int (index . 0).Values.ports.health }}"
audit_log = "/dev/stdout"
{{- end -}}

{{- define "coffer.config.tls" -}}
[tls]
ca = "/data/enrolled/tls/ca.pem"
certificate = "/data/enrolled/tls/certificate.pem"
key = "/data/enrolled/tls/key.pem"
{{- end -}}

{{- define "coffer.config.enrol" -}}
authority = "{{ include "coffer.authorityName" . }}:{{ int .Values.ports.authority }}"
ca = "/etc/coffer/trust/ca.pem"
join_token_file = "/etc/coffer/secret/join-token"
dir = "/data/enrolled"
{{- end -}}

{{- define "coffer.config.authority" -}}
{{- $full := include "coffer.fullname" . -}}
{{- $ns := .Release.Namespace -}}
{{- $members := list -}}
{{- range $i := until (int .Values.metadata.members) -}}
{{- $members = append $members (printf "%s-metadata-%d.%s-metadata.%s.svc:%d" $full $i $full $ns (int $.Values.ports.raft)) -}}
{{- end -}}
{{- $nodes := list -}}
{{- $storage := list -}}
{{- range $set := include "coffer.storageSets" . | fromJsonArray -}}
{{- $service := printf "%s-storage%s" $full $set.suffix -}}
{{- $storage = append $storage (printf "*.%s.%s.svc" $service $ns) -}}
{{- range $i := until (int $set.replicas) -}}
{{- $nodes = append $nodes (printf "%s-%d.%s.%s.svc:%d" $service $i $service $ns (int $.Values.ports.chunks)) -}}
{{- end -}}
{{- end -}}
authority.toml: |
  {{- include "coffer.config.listen" (list . .Values.ports.authority) | nindent 2 }}
  data_dir = "/data/authority"
  ca = "/etc/coffer/authority/ca.pem"
  issuer = "/etc/coffer/authority/{{ ternary "issuer.pem" "ca.pem" .Values.authority.certManager.enabled }}"
  key = "/etc/coffer/authority/ca.key"
  join_token_file = "/etc/coffer/secret/join-token"
  administrator = "/etc/coffer/administrator"
  names = [{{ include "coffer.authorityName" . | quote }}]
  members = {{ toJson $members }}
  nodes = {{ toJson $nodes }}
  open_registration = {{ .Values.authority.openRegistration }}
  replace_after = {{ .Values.authority.replaceAfter | quote }}
  certificate_life = {{ .Values.authority.certificateLife | quote }}
  [names_of]
  metadata = [{{ printf "*.%s-metadata.%s.svc" $full $ns | quote }}]
  storage = {{ toJson $storage }}
  gateway = {{ include "coffer.gatewayNames" . }}
{{- end -}}

{{- define "coffer.config.metadata" -}}
metadata.toml: |
  {{- include "coffer.config.listen" (list . .Values.ports.raft) | nindent 2 }}
  data_dir = "/data/member"
  descriptor = "/data/enrolled/descriptor"
  layout = "/data/enrolled/layout"
  opaque_setup = "/etc/coffer/secret/opaque.setup"
  join_token_file = "/etc/coffer/secret/join-token"
  {{- include "coffer.config.tls" . | nindent 2 }}
  {{- with .Values.metadata.timing }}
  [timing]
  {{- range $key := tuple "heartbeat" "election_min" "election_max" "tick" "step_down" }}
  {{- with get $.Values.metadata.timing (camelcase $key | untitle) }}
  {{ $key }} = {{ . | quote }}
  {{- end }}
  {{- end }}
  {{- end }}
enrol.toml: |
  {{- include "coffer.config.enrol" . | nindent 2 }}
{{- end -}}

{{- define "coffer.config.storage" -}}
{{- $storage := .Values.storage -}}
storage.toml: |
  {{- include "coffer.config.listen" (list . .Values.ports.chunks) | nindent 2 }}
  data_dir = "/data/node"
  descriptor = "/data/enrolled/descriptor"
  join_token_file = "/etc/coffer/secret/join-token"
  zone = ""
  capacity = {{ include "coffer.storageCapacity" . }}
  {{- with $storage.scrubEvery }}
  scrub_every = {{ . | quote }}
  {{- end }}
  {{- with $storage.scrubBytesPerSecond }}
  scrub_bytes_per_second = {{ . | quote }}
  {{- end }}
  {{- with $storage.compactEvery }}
  compact_every = {{ . | quote }}
  {{- end }}
  {{- with int $storage.compactDeadPercent }}
  compact_dead_percent = {{ . }}
  {{- end }}
  {{- with $storage.compactBytesPerSecond }}
  compact_bytes_per_second = {{ . | quote }}
  {{- end }}
  {{- include "coffer.config.tls" . | nindent 2 }}
enrol.toml: |
  {{- include "coffer.config.enrol" . | nindent 2 }}
  zone = ""
  weight = {{ int $storage.weight }}
{{- end -}}

{{- define "coffer.config.gateway" -}}
gateway.toml: |
  {{- include "coffer.config.listen" (list . .Values.ports.grpc) | nindent 2 }}
  descriptor = "/data/enrolled/descriptor"
  {{- with .Values.gateway.inFlightBytes }}
  in_flight_bytes = {{ . | quote }}
  {{- end }}
  {{- include "coffer.config.tls" . | nindent 2 }}
enrol.toml: |
  {{- include "coffer.config.enrol" . | nindent 2 }}
  names = {{ include "coffer.gatewayNames" . }}
{{- end -}}
