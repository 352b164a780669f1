#!/usr/bin/env bash
# Sourced by the batch scripts: a command that saves on SIGUSR1, and a job that is then queued again.

# resumable JOB COMMAND ...: runs the command, hands SIGUSR1 on to it, and queues the job again if that ended it.
resumable() {
  local job=$1 code signalled=
  shift
  "$@" &
  local command=$!
  trap 'signalled=yes; kill -USR1 "$command"' USR1
  wait "$command"
  code=$?
  while kill -0 "$command" 2>/dev/null; do # a signal ended `wait`, not the command
    wait "$command"
    code=$?
  done
  if [[ -n $signalled && $code -ne 0 ]]; then
    scontrol requeue "$job"
  fi
  return "$code"
}
