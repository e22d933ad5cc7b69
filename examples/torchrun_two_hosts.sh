#!/bin/sh
# One training over two hosts under torchrun, watched, without a line changed in the training script.
#
# Once, on the host that everybody can reach (here 10.0.0.9; it may also be one of the two):
#
#     optwatch daemon --listen tcp://10.0.0.9:47017      # clients also use the port above, 47018
#     optwatch daemon status --json                      # its "key" is what goes into OPTWATCH_DAEMON_KEY
#
# On each of the two hosts:
#
#     export OPTWATCH_DAEMON=tcp://10.0.0.9:47017        # one address for all ranks
#     export OPTWATCH_DAEMON_KEY='…'                     # obey and send to this daemon only
#     NODE_RANK=0 MASTER_ADDR=10.0.0.1 sh torchrun_two_hosts.sh train.py --lr 0.1      # the first host
#     NODE_RANK=1 MASTER_ADDR=10.0.0.1 sh torchrun_two_hosts.sh train.py --lr 0.1      # the second
#
# What optwatch needs of the two hosts:
# - Keys. The daemon lets in the key pair of its user, ~/.config/optwatch/keys/user.json. A home that the
#   hosts share has it on all of them; else `optwatch keys` on a training host shows its key, and on the
#   daemon's host `optwatch keys add agent 'KEY' NAME` lets it in.
# - Ports. Every rank connects to the daemon, port 47017. The daemon connects to nobody.
# - The store. To act at the same step the ranks use the job's own: MASTER_ADDR:MASTER_PORT, which they
#   reach already. Nothing of optwatch listens on a training host.
# A link to the daemon that breaks stalls no step: the agents keep what they have and send it later.
set -eu
: "${NODE_RANK:?0 on the first host, 1 on the second}" "${MASTER_ADDR:?an address of the first host}"
exec torchrun \
    --nnodes=2 --nproc-per-node="${RANKS_PER_HOST:-1}" --node-rank="$NODE_RANK" \
    --master-addr="$MASTER_ADDR" --master-port="${MASTER_PORT:-29500}" --rdzv-id="${JOB_ID:-two-hosts}" \
    --no-python optwatch run -- "$@"
