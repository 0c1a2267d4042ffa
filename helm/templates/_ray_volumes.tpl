{{/* The mounts of a Ray container, and the volumes of its pod. Arguments: those of the pod. */}}
{{- define "llavamed.rayMounts" -}}
{{- $ray := .root.Values.ray -}}
- {name: ray-logs, mountPath: /tmp/ray}
- {name: shared-memory, mountPath: /dev/shm}
- {name: configs, mountPath: {{ include "llavamed.configDir" . }}, readOnly: true}
{{- if and .group.gpus $ray.weights.uri }}
- {name: weights, mountPath: {{ $ray.weights.mountPath }}, readOnly: true}
{{- end }}
{{- range $index, $claim := $ray.claims }}
- {name: claim-{{ $index }}, mountPath: {{ .mountPath }}, readOnly: {{ .readOnly | default false }}}
{{- end }}
{{- with $ray.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "llavamed.rayVolumes" -}}
{{- $ray := .root.Values.ray -}}
# KubeRay's own name for it, so that its autoscaler container shares it. Ray spills objects there, too.
- name: ray-logs
  emptyDir:
    sizeLimit: {{ .group.disk }}
- name: shared-memory
  emptyDir:
    medium: Memory
    sizeLimit: {{ .group.sharedMemory }}
- name: configs
  configMap:
    name: {{ include "llavamed.name" .root }}-configs
{{- if and .group.gpus $ray.weights.uri }}
- name: weights
  emptyDir:
    sizeLimit: {{ $ray.weights.size }}
{{- end }}
{{- range $index, $claim := $ray.claims }}
- name: claim-{{ $index }}
  persistentVolumeClaim:
    claimName: {{ .claim | quote }}
    readOnly: {{ .readOnly | default false }}
{{- end }}
{{- with $ray.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{/* Arguments: those of the pod. */}}
{{- define "llavamed.checkVolumes" -}}
{{- include "llavamed.checkMounts" (dict "values" "ray" "volumes" (include "llavamed.rayVolumes" .) "mounts" (include "llavamed.rayMounts" .)) -}}
{{- end }}

{{/*
Refuse volumes that Kubernetes would refuse, and mounts that it would refuse only once KubeRay makes the pods. Arguments:
values (the section that users add them to), volumes and mounts, both as YAML.
*/}}
{{- define "llavamed.checkMounts" -}}
{{- $values := .values -}}
{{- $names := list -}}
{{- range print .volumes "\n" | fromYamlArray -}}
{{- if has .name $names }}{{ fail (printf "%s.extraVolumes: the name %s is taken; choose another" $values .name) }}{{ end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- $paths := list -}}
{{- range print .mounts "\n" | fromYamlArray -}}
{{- $path := clean .mountPath -}}
{{- if has $path $paths -}}
{{- fail (printf "%s: two volumes are mounted at %s; move that of extraVolumeMounts%s" $values $path (ternary ", claims or weights.mountPath" "" (eq $values "ray"))) -}}
{{- else if not (has .name $names) -}}
{{- fail (printf "%s.extraVolumeMounts: %s, mounted at %s, is none of the volumes %s; add it to %s.extraVolumes" $values .name $path (join ", " $names) $values) -}}
{{- end -}}
{{- $paths = append $paths $path -}}
{{- end -}}
{{- end }}
