{{- define "expunge.name" -}}
{{- printf "%s" .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "expunge.labels" -}}
app.kubernetes.io/name: expunge
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "expunge.selector" -}}
app.kubernetes.io/name: expunge
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- /* An image of registry, repository and tag or digest. */ -}}
{{- define "expunge.image" -}}
{{- $image := index . 0 -}}
{{- $version := index . 1 -}}
{{- with $image.registry }}{{ . }}/{{ end -}}
{{- $image.repository -}}
{{- if $image.digest }}@{{ $image.digest }}{{ else }}:{{ default $version $image.tag }}{{ end -}}
{{- end -}}

{{- /* Names of the watched namespaces, as a JSON list. */ -}}
{{- define "expunge.namespaces" -}}
{{- .Values.watchNamespaces | default (list .Release.Namespace) | uniq | toJson -}}
{{- end -}}

{{- define "expunge.jobsAccount" -}}
{{- default "expunge-jobs" .Values.jobs.serviceAccount.name -}}
{{- end -}}

{{- /* A value of an environment or argument as it stands: Kubernetes would expand $(NAME) in it. */ -}}
{{- define "expunge.literal" -}}
{{- . | replace "$" "$$" | quote -}}
{{- end -}}
