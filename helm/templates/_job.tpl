{{/*
What starts all pods of the job or none, by the values that ask for it: its name, that of one of its kinds, and the
value. Empty: Kubernetes' own scheduler, which starts pods one by one.
*/}}
{{- define "llavamed.gangScheduler" -}}
{{- $job := .Values.job -}}
{{- $volcano := dict -}}
{{- range $key, $value := $job.labels -}}
{{- if hasPrefix "volcano.sh/" $key }}{{ $_ := set $volcano $key $value }}{{ end -}}
{{- end -}}
{{- if $job.queue -}}
{{- dict "name" "Kueue" "kind" "kueue.x-k8s.io/v1beta2/LocalQueue" "value" (printf "job.queue=%s" $job.queue) | toYaml -}}
{{- else if $volcano -}}
{{- dict "name" "Volcano" "kind" "scheduling.volcano.sh/v1beta1/PodGroup" "value" (printf "job.labels=%s" (toJson $volcano)) | toYaml -}}
{{- end -}}
{{- end }}

{{/* Refuse labels that users must not set, and a queue for what Kueue does not accept. */}}
{{- define "llavamed.checkJob" -}}
{{- range $key, $value := .Values.job.labels -}}
{{- if eq $key "kueue.x-k8s.io/queue-name" -}}
{{- fail (printf "job.labels: %s=%s is set by job.queue, which also makes a job that Kueue takes; set job.queue=%s" $key $value $value) -}}
{{- else if or (hasPrefix "app.kubernetes.io/" $key) (hasPrefix "helm.sh/" $key) -}}
{{- fail (printf "job.labels: %s is set by the chart; use another key" $key) -}}
{{- end -}}
{{- end -}}
{{- if and .Values.job.queue .Values.ray.autoscaling.enabled -}}
{{- fail (printf "job.queue=%s: Kueue admits a job of a fixed size; set ray.autoscaling.enabled=false" .Values.job.queue) -}}
{{- end -}}
{{- end }}

{{/* The specification of a job with a cluster of its own. */}}
{{- define "llavamed.jobSpec" -}}
{{- with .Values.job -}}
{{- if gt (len (include "llavamed.name" $)) 47 -}}
{{- fail (printf "release name %q has %d characters: KubeRay takes 47 of a job's name" $.Release.Name (len $.Release.Name)) -}}
{{- end -}}
entrypoint: {{ .entrypoint | quote }}
# The operator itself submits and watches the job, so a lost log stream does no harm, and no submitter pod is created,
# which a restricted namespace would refuse and Kueue would count.
submissionMode: HTTPMode
backoffLimit: {{ int .backoffLimit }}
preRunningDeadlineSeconds: {{ int .preRunningDeadlineSeconds }}
{{- with int .activeDeadlineSeconds }}
activeDeadlineSeconds: {{ . }}
{{- end }}
{{- if .queue }}
# Kueue accepts no job with deletion rules: the cluster is deleted, whatever the outcome of the job.
shutdownAfterJobFinishes: true
ttlSecondsAfterFinished: {{ int .keepSeconds }}
{{- else }}
deletionStrategy:
  deletionRules:
    - policy: DeleteCluster
      condition: {jobStatus: SUCCEEDED, ttlSeconds: {{ int .keepSeconds }}}
    # Not by jobStatus: a job that has missed a deadline, or could not be submitted, has none.
    {{- if not $.Values.ray.autoscaling.enabled }}
    - policy: DeleteWorkers
      condition: {jobDeploymentStatus: Failed, ttlSeconds: 0}
    {{- end }}
    - policy: DeleteCluster
      condition: {jobDeploymentStatus: Failed, ttlSeconds: {{ int .keepFailedSeconds }}}
{{- end }}
rayClusterSpec:
  {{- /* A job's cluster is created once: there is nothing to upgrade. */}}
  {{- omit (include "llavamed.liveSpec" $ | fromYaml) "upgradeStrategy" | toYaml | nindent 2 }}
{{- end }}
{{- end }}
