# Sourced by a task's shell, with this file's own name and the runner's words as "$@": have them done by the warm
# server, if there is one. The manager writes two lines to it: before it $_poncho_id, which is part of the names of
# servers that will do, and after it what is to be run in a fresh interpreter; $_poncho_warm is then the directory where
# a server may be started, or nothing. The story is told in poncho_wq/warm/__init__.py.
#
# Built-ins only. Redirection errors of `exec` would end the shell; those of `command exec` do not. The server takes the
# task's streams from 3, 8 and 9, since the shell moves 0 and 1 about while it reads and writes elsewhere.

# A worker kills groups, and makes its tasks their leaders from outside: too late, when the task's shell runs already.
_poncho_lead() {
	{ read -r _poncho_word <"/proc/$PPID/comm"; } 2>/dev/null || return 0
	case $_poncho_word in
		work_queue_work*) ! command -v setsid >/dev/null || exec setsid sh -c '. "./$1"' sh "$@" ;;
	esac
}

_poncho_ask() {
	case ${WORK_QUEUE_SANDBOX-} in
		/*) ;;
		*) return ;;
	esac
	# A monitor measures the tree of processes below it, in which the child would not be.
	[ -z "${CCTOOLS_RESOURCE_MONITOR_INFO-}${CCTOOLS_RESOURCE_MONITOR_HELPER-}" ] || return
	# What numeric libraries read when they are imported.
	_poncho_key=${CORES-}.${OMP_NUM_THREADS-}.${OPENBLAS_NUM_THREADS-}.${MKL_NUM_THREADS-}.${NUMEXPR_NUM_THREADS-}
	_poncho_key=$_poncho_key.${VECLIB_NUM_THREADS-}.${BLIS_NUM_THREADS-}.${NUMBA_NUM_THREADS-}
	case $_poncho_key in
		*[!0-9.]*) return ;;
	esac
	_poncho_warm=$WORK_QUEUE_SANDBOX/poncho-warm-$_poncho_id-$_poncho_key
	[ -O "$_poncho_warm/cur" ] && read -r _poncho_place <"$_poncho_warm/cur" || return
	_poncho_place=$_poncho_warm/$_poncho_place
	_poncho_slot=0
	set -C
	until echo "$$" 2>/dev/null >"$_poncho_place/claim.$_poncho_slot"; do
		_poncho_slot=$((_poncho_slot + 1))
		[ -p "$_poncho_place/reply.$_poncho_slot" ] && continue
		set +C
		return
	done
	set +C
	_poncho_line="run $$ $_poncho_slot $*"
	# A longer line could be torn apart by another's (PIPE_BUF).
	[ "${#_poncho_line}" -lt 4000 ] || return
	# Opened for reading and writing first: a FIFO that has no other end would keep us waiting for ever. Read-only then,
	# so that it comes to its end when the server goes.
	[ -p "$_poncho_place/reply.$_poncho_slot" ] && [ -p "$_poncho_place/requests" ] || return
	command exec 3<&0 8>&1 9>&2
	{ command exec 6<>"$_poncho_place/reply.$_poncho_slot" 7<>"$_poncho_place/requests"; } 2>/dev/null || return
	{ command exec 5<"$_poncho_place/reply.$_poncho_slot" 6>&-; } 2>/dev/null || return
	printf '%s\n' "$_poncho_line" >&7
	while :; do
		read -r _poncho_pid _poncho_word _poncho_status <&5 || break
		[ "$_poncho_pid" = "$$" ] || continue # said to one who died
		[ "$_poncho_word" = started ] && _poncho_attend
		break
	done
	[ "$_poncho_word" != fresh ] || printf '%s\n' "free $$ $_poncho_slot" >&7
}

# The child runs: pass on what we are sent, and end as it does.
_poncho_attend() {
	_poncho_child=$_poncho_status
	for _poncho_word in TERM HUP INT QUIT USR1 USR2; do
		trap "_poncho_caught=yes; kill -s $_poncho_word $_poncho_child 2>/dev/null" "$_poncho_word"
	done
	while :; do
		_poncho_caught=
		_poncho_word=
		read -r _poncho_pid _poncho_word _poncho_status <&5 && break
		# The end, and not a signal: the server has died, and nobody would tell us what becomes of the child.
		[ -n "$_poncho_caught" ] && continue
		# The child leads a group of its own where we do not.
		kill -s KILL -- "-$_poncho_child" "$_poncho_child" "-$$"
		kill -s KILL "$$"
	done
	[ "$_poncho_word" = signal ] || exit "$_poncho_status"
	trap - TERM HUP INT QUIT USR1 USR2
	ulimit -c 0
	kill "-$_poncho_status" "$$"
	exit "$((128 + _poncho_status))"
}

kill -0 "-$$" 2>/dev/null || _poncho_lead "$@"
shift
_poncho_warm=
_poncho_word=
_poncho_ask "$@"
command exec 3<&- 5<&- 6>&- 7>&- 8>&- 9>&-
