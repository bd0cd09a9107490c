#!/bin/bash
# A distillation on several nodes under SLURM, which goes on by itself where the time ran out:
#   RUN=runs/student sbatch examples/slurm.sh --teacher runs/teacher --data imagenet --steps 4
#SBATCH --job-name=spikelet
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=12:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
set -u

run=${RUN:-runs/student}
verb=${VERB:-distill}
each=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

if [ -e "$run/recipe.json" ]; then
  words=("$verb" --resume "$run")
else
  words=("$verb" "$@" --out "$run")
fi

stopped=0
trap 'stopped=1; kill -TERM "$step"' TERM  # all finish their step, and process 0 stores it
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$each" --rdzv-id "$SLURM_JOB_ID" \
  --rdzv-backend c10d --rdzv-endpoint "$head:${PORT:-29500}" -m spikelet "${words[@]}" &
step=$!
wait "$step"
status=$?
if [ "$stopped" = 1 ]; then
  wait "$step"
  [ -e "$run/results.json" ] || scontrol requeue "$SLURM_JOB_ID"
  exit 0
fi
exit "$status"
