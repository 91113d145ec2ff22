{{/* Names and labels. */}}

{{- define "coffer.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := .Values.fullnameOverride -}}
{{- if not $full -}}
{{- $full = ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) -}}
{{- end -}}
{{- if gt (len $full) 40 -}}
{{- fail (printf "the name %q is longer than 40 characters, and names of pods begin with it: set fullnameOverride" $full) -}}
{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "the name %q cannot begin the name of a Service, which has a-z, 0-9 and '-' and begins with a letter: set fullnameOverride" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{/* Takes (list . component). */}}
{{- define "coffer.selector" -}}
{{- $ := index . 0 -}}
app.kubernetes.io/name: {{ default $.Chart.Name $.Values.nameOverride }}
app.kubernetes.io/instance: {{ $.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{/* What all pods of the release have, and no others. */}}
{{- define "coffer.releaseSelector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "coffer.labels" -}}
{{- $ := index . 0 -}}
{{ include "coffer.selector" . }}
app.kubernetes.io/version: {{ $.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: coffer
app.kubernetes.io/managed-by: {{ $.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $.Chart.Name $.Chart.Version | replace "+" "_" }}
{{- with $.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes (list . component suffix); the suffix is empty or begins with '-'. */}}
{{- define "coffer.metadata" -}}
{{- $ := index . 0 -}}
name: {{ include "coffer.fullname" $ }}-{{ index . 1 }}{{ index . 2 }}
namespace: {{ $.Release.Namespace }}
labels:
  {{- include "coffer.labels" (list $ (index . 1)) | nindent 2 }}
{{- end -}}

{{/* Labels and annotations of a pod's template: nothing that changes with the chart's version alone, which would replace all
     pods. Takes (list . component), and labels more as a third. */}}
{{- define "coffer.podMetadata" -}}
{{- $ := index . 0 -}}
{{- $component := index . 1 -}}
{{- $more := ternary (last .) (dict) (gt (len .) 2) -}}
{{- $values := index $.Values $component -}}
{{- $annotations := dict "checksum/config" (include (printf "coffer.config.%s" $component) $ | sha256sum) -}}
{{- if $.Values.monitoring.annotations -}}
{{- $annotations = merge $annotations (dict "prometheus.io/scrape" "true" "prometheus.io/port" (toString (int $.Values.ports.health)) "prometheus.io/path" "/metrics") -}}
{{- end -}}
labels:
  {{- include "coffer.selector" (list $ $component) | nindent 2 }}
  {{- with mergeOverwrite (dict) $.Values.commonLabels $values.podLabels $more }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  {{- merge $annotations $values.podAnnotations | toYaml | nindent 2 }}
{{- end -}}

{{/* Addresses: POD.SERVICE.NAMESPACE.svc, without the cluster's domain, which pods find by their search list. */}}

{{- define "coffer.authorityName" -}}
{{ include "coffer.fullname" . }}-authority.{{ .Release.Namespace }}.svc
{{- end -}}

{{/* The StatefulSets of storage nodes, as JSON: suffix, zone, replicas. */}}
{{- define "coffer.storageSets" -}}
{{- $replicas := int .Values.storage.replicas -}}
{{- $zones := .Values.storage.zones -}}
{{- $sets := list -}}
{{- if $zones -}}
{{- if mod $replicas (len $zones) -}}
{{- fail (printf "storage.replicas is %d, which storage.zones, of which there are %d, cannot share evenly: make it a multiple" $replicas (len $zones)) -}}
{{- end -}}
{{- range $zone := $zones -}}
{{- $name := printf "%s-storage-%s" (include "coffer.fullname" $) $zone -}}
{{- if gt (len $name) 52 -}}
{{- fail (printf "storage.zones: the StatefulSet's name %q would be longer than 52 characters: set a shorter fullnameOverride" $name) -}}
{{- end -}}
{{- $sets = append $sets (dict "suffix" (printf "-%s" $zone) "zone" $zone "replicas" (div $replicas (len $zones))) -}}
{{- end -}}
{{- range $zone := .Values.storage.updateZones -}}
{{- if not (has $zone $zones) -}}
{{- fail (printf "storage.updateZones names %q, which is not one of storage.zones" $zone) -}}
{{- end -}}
{{- end -}}
{{- else -}}
{{- if .Values.storage.updateZones -}}
{{- fail "storage.updateZones is for clusters with storage.zones" -}}
{{- end -}}
{{- $sets = list (dict "suffix" "" "zone" "" "replicas" $replicas) -}}
{{- end -}}
{{- toJson $sets -}}
{{- end -}}

{{- define "coffer.gatewayNames" -}}
{{- $name := printf "%s-gateway" (include "coffer.fullname" .) -}}
{{- $names := list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) "localhost" -}}
{{- $names = concat $names .Values.gateway.names -}}
{{- if and .Values.ingress.enabled (eq .Values.ingress.tls.mode "passthrough") -}}
{{- $names = concat $names .Values.ingress.hosts -}}
{{- end -}}
{{- if .Values.gatewayApi.tlsRoute.enabled -}}
{{- $names = concat $names .Values.gatewayApi.tlsRoute.hostnames -}}
{{- end -}}
{{- uniq $names | toJson -}}
{{- end -}}

{{/* Quantities: Mi, Gi and Ti to bytes. */}}
{{- define "coffer.bytes" -}}
{{- $units := dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- $number := regexFind "^[0-9]+" . | atoi -}}
{{- mul $number (get $units (regexFind "[A-Z]i$" .)) -}}
{{- end -}}

{{- define "coffer.storageCapacity" -}}
{{- $size := include "coffer.bytes" .Values.storage.persistence.size | int64 -}}
{{- if .Values.storage.capacity -}}
{{- $capacity := include "coffer.bytes" .Values.storage.capacity | int64 -}}
{{- if gt $capacity $size -}}
{{- fail (printf "storage.capacity is %s, more than storage.persistence.size, which is %s" .Values.storage.capacity .Values.storage.persistence.size) -}}
{{- end -}}
{{- $capacity -}}
{{- else -}}
{{- mul (div $size 10) 9 -}}
{{- end -}}
{{- end -}}

{{/* Secrets. */}}

{{- define "coffer.secret" -}}
{{ include "coffer.fullname" . }}-secrets
{{- end -}}

{{- define "coffer.administratorSecret" -}}
{{ .Values.administrator.existingSecret | default (include "coffer.secret" .) }}
{{- end -}}

{{- define "coffer.authoritySecret" -}}
{{- if .Values.authority.certManager.enabled -}}
{{ include "coffer.fullname" . }}-authority-ca
{{- else -}}
{{ .Values.authority.existingSecret | default (include "coffer.secret" .) }}
{{- end -}}
{{- end -}}

{{/* What every pod trusts, as a source of a projected volume. */}}
{{- define "coffer.trustSource" -}}
- secret:
    name: {{ include "coffer.authoritySecret" . }}
    items:
      - key: {{ ternary "ca.crt" "ca.pem" .Values.authority.certManager.enabled }}
        path: trust/ca.pem
{{- end -}}

{{- define "coffer.joinTokenSource" -}}
- secret:
    name: {{ include "coffer.secret" . }}
    items:
      - key: join-token
        path: secret/join-token
{{- end -}}

{{- define "coffer.configSource" -}}
- configMap:
    name: {{ include "coffer.fullname" (index . 0) }}-{{ index . 1 }}
    items:
      {{- range slice . 2 }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- end -}}

{{/* Pods. */}}

{{- define "coffer.image" -}}
{{- $image := .Values.image -}}
{{- $name := $image.repository -}}
{{- with $image.registry }}{{ $name = printf "%s/%s" . $name }}{{ end -}}
{{- $tag := $image.tag | default .Chart.AppVersion -}}
{{- if eq $tag "latest" }}{{ fail "image.tag: latest is not a version" }}{{ end -}}
{{- if $image.digest -}}
{{ $name }}:{{ $tag }}@{{ $image.digest }}
{{- else -}}
{{ $name }}:{{ $tag }}
{{- end -}}
{{- end -}}

{{- define "coffer.container" -}}
image: {{ include "coffer.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
terminationMessagePolicy: FallbackToLogsOnError
securityContext:
  allowPrivilegeEscalation: false
  capabilities:
    drop:
      - ALL
  privileged: false
  readOnlyRootFilesystem: true
  runAsGroup: 65532
  runAsNonRoot: true
  runAsUser: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{/* Takes (list . serviceAccountComponent). */}}
{{- define "coffer.pod" -}}
{{- $ := index . 0 -}}
serviceAccountName: {{ include "coffer.fullname" $ }}-{{ index . 1 }}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  fsGroup: 65532
  fsGroupChangePolicy: OnRootMismatch
  runAsGroup: 65532
  runAsNonRoot: true
  runAsUser: 65532
  seccompProfile:
    type: RuntimeDefault
{{- with $.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Where the pods of a component go, and how they end. */}}
{{- define "coffer.scheduling" -}}
{{- $ := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index $.Values $component -}}
terminationGracePeriodSeconds: {{ int $values.terminationGracePeriodSeconds }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Keeps the pods of a component apart. Takes (list . component zone). */}}
{{- define "coffer.spread" -}}
{{- $ := index . 0 -}}
{{- $component := index . 1 -}}
{{- $zone := index . 2 -}}
{{- $spread := get (index $.Values $component) "antiAffinity" | default "none" -}}
{{- if or $zone (ne $spread "none") }}
affinity:
  {{- if $zone }}
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            - key: topology.kubernetes.io/zone
              operator: In
              values:
                - {{ $zone | quote }}
  {{- end }}
  {{- if ne $spread "none" }}
  podAntiAffinity:
    {{- if eq $spread "hard" }}
    requiredDuringSchedulingIgnoredDuringExecution:
      - labelSelector:
          matchLabels:
            {{- include "coffer.selector" (list $ $component) | nindent 12 }}
        topologyKey: kubernetes.io/hostname
    {{- end }}
    preferredDuringSchedulingIgnoredDuringExecution:
      {{- if ne $spread "hard" }}
      - weight: 100
        podAffinityTerm:
          labelSelector:
            matchLabels:
              {{- include "coffer.selector" (list $ $component) | nindent 14 }}
          topologyKey: kubernetes.io/hostname
      {{- end }}
      - weight: 50
        podAffinityTerm:
          labelSelector:
            matchLabels:
              {{- include "coffer.selector" (list $ $component) | nindent 14 }}
          topologyKey: topology.kubernetes.io/zone
  {{- end }}
{{- end }}
{{- if ne $spread "none" }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "coffer.selector" (list $ $component) | nindent 8 }}
  {{- if not $zone }}
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "coffer.selector" (list $ $component) | nindent 8 }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* Liveness is this process, readiness is this pod; neither depends on the cluster. */}}
{{- define "coffer.probes" -}}
startupProbe:
  grpc:
    port: {{ int .Values.ports.health }}
    service: alive
  periodSeconds: 1
  timeoutSeconds: 3
  failureThreshold: 300
livenessProbe:
  grpc:
    port: {{ int .Values.ports.health }}
    service: alive
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  grpc:
    port: {{ int .Values.ports.health }}
  periodSeconds: 1
  timeoutSeconds: 3
  failureThreshold: 5
{{- end -}}

{{- define "coffer.commonEnv" -}}
- name: COFFER_LOG
  value: {{ .Values.logLevel | quote }}
{{- with .Values.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* A pod's own name, and what follows from it. Takes (list . service port). */}}
{{- define "coffer.podEnv" -}}
{{- $ := index . 0 -}}
{{- $name := printf "$(POD_NAME).%s.%s.svc" (index . 1) $.Release.Namespace -}}
- name: POD_NAME
  valueFrom:
    fieldRef:
      fieldPath: metadata.name
- name: COFFER_ENROL__NAMES
  value: {{ $name | quote }}
- name: COFFER_ENROL__ADDRESS
  value: {{ printf "%s:%d" $name (int (index . 2)) | quote }}
{{- end -}}

{{/* The volume of a StatefulSet's pod. Its labels never change, because Kubernetes would refuse that. */}}
{{- define "coffer.volumeClaim" -}}
{{- $ := index . 0 -}}
{{- $component := index . 1 -}}
{{- $persistence := (index $.Values $component).persistence -}}
- apiVersion: v1
  kind: PersistentVolumeClaim
  metadata:
    name: data
    labels:
      {{- include "coffer.selector" (list $ $component) | nindent 6 }}
  spec:
    accessModes:
      {{- toYaml $persistence.accessModes | nindent 6 }}
    {{- with $persistence.storageClassName }}
    storageClassName: {{ . | quote }}
    {{- end }}
    volumeMode: Filesystem
    resources:
      requests:
        storage: {{ $persistence.size }}
{{- end -}}

{{- define "coffer.ipFamilies" -}}
{{- with .Values.network.ipFamilyPolicy }}
ipFamilyPolicy: {{ . }}
{{- end }}
{{- with .Values.network.ipFamilies }}
ipFamilies:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
