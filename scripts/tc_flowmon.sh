#!/bin/bash
# Loads, runs and removes flowmon. Thin: it reads the defaults file and the options, and each verb
# is one call of `flowmon`, which does the work. See usage below.
set -euo pipefail

readonly NAME=tc_flowmon.sh
readonly VERBS='start load stop unload purge status'
readonly DEFAULTS_FILE=${FLOWMON_DEFAULTS:-/etc/default/flowmon}

usage() {
	cat <<-END
		Usage: $NAME [OPTION]... {start|load|stop|unload|purge|status}

		  start   load, attach, and run the collector in the background
		  load    load the programs and attach them: they count from then on
		  stop    end the collector; the programs go on counting
		  unload  end the collector and detach the programs; the table stays
		          (with -i: detach from those interfaces only)
		  purge   unload, and remove the table with what is in it
		  status  where the programs are, and what they have counted

		  -i, --interface DEV      interface; may be repeated, or several with commas
		  -a, --all                every interface
		      --int SECONDS        time between passes over the table; 0: one pass
		  -p, --program FILE       BPF object, instead of flowmon's own
		  -s, --section NAME       section of the programs in it
		  -m, --map NAME|PATH      flow table: its name, or its path in bpffs
		  -d, --direction WHICH    ingress, egress or both (also --dir)
		  -w, --write DIR          records go there, as Parquet
		  -u, --userland PROGRAM   the flowmon command
		  -j, --json               JSON: records of start, output of status
		      --show-defaults      print the defaults and exit
		  -h, --help               print this and exit

		Defaults are read from $DEFAULTS_FILE where that exists.
	END
}

# fail STATUS MESSAGE: one line on standard error. Status 2 is wrong usage, 1 a failure.
fail() {
	printf '%s: %s\n' "$NAME" "${2//$'\n'/ }" >&2
	exit "$1"
}

set_defaults() {
	INTERFACE=lo
	ALL=no
	INTERVAL=10
	PROGRAM=
	SECTION=
	MAP=
	DIRECTION=both
	WRITE_DIR=/var/lib/flowmon
	LOG_FILE=/var/log/flowmon.log
	USERLAND=
	JSON=no

	[[ -e $DEFAULTS_FILE ]] || return 0
	[[ -r $DEFAULTS_FILE ]] || fail 1 "$DEFAULTS_FILE cannot be read: run as root"
	local problem
	problem=$(bash -n "$DEFAULTS_FILE" 2>&1) || fail 2 "$DEFAULTS_FILE is no shell script: $problem"
	# shellcheck source=scripts/flowmon.default
	source "$DEFAULTS_FILE" || fail 2 "$DEFAULTS_FILE: its last command fails: only assign variables there"
}

# The defaults as the defaults file is written.
show_defaults() {
	local name
	for name in INTERFACE ALL INTERVAL PROGRAM SECTION MAP DIRECTION WRITE_DIR LOG_FILE USERLAND JSON; do
		printf '%s=%q\n' "$name" "${!name}"
	done
}

# parse ARGUMENT...: sets the variables above, chosen (interfaces of the command line) and VERB.
parse() {
	local defaults parsed problem all_asked=no
	local -a getopt_call=(
		getopt -n "$NAME"
		-o 'i:ap:s:m:d:w:u:jh'
		-l 'interface:,all,int:,program:,section:,map:,direction:,dir:,write:,userland:,json'
		-l 'show-defaults,help'
		-- "$@"
	)
	defaults=$(show_defaults)
	if ! parsed=$("${getopt_call[@]}" 2>/dev/null); then
		problem=$("${getopt_call[@]}" 2>&1 >/dev/null || true)
		problem=${problem%%$'\n'*}
		fail 2 "${problem#"$NAME: "}: see $NAME --help"
	fi
	eval set -- "$parsed"
	while [[ $1 != -- ]]; do
		case $1 in
			-i | --interface)
				[[ $2 =~ ^[^,[:space:]]+(,[^,[:space:]]+)*$ ]] ||
					fail 2 "$1 '$2': give the name of an interface, or several with commas"
				chosen+=("${2//,/ }")
				shift
				;;
			-a | --all) all_asked=yes ;;
			--int) INTERVAL=$2 && shift ;;
			-p | --program) PROGRAM=$2 && shift ;;
			-s | --section) SECTION=$2 && shift ;;
			-m | --map) MAP=$2 && shift ;;
			-d | --direction | --dir) DIRECTION=$2 && shift ;;
			-w | --write) WRITE_DIR=$2 && shift ;;
			-u | --userland) USERLAND=$2 && shift ;;
			-j | --json) JSON=yes ;;
			--show-defaults) echo "$defaults" && exit 0 ;;
			-h | --help) usage && exit 0 ;;
		esac
		shift
	done
	shift
	(($# > 0)) || fail 2 "no verb: give one of $VERBS"
	(($# == 1)) || fail 2 "'$2' after $1: give one verb"
	VERB=$1
	[[ " $VERBS " == *" $VERB "* ]] || fail 2 "unknown verb '$VERB': give one of $VERBS"
	if ((${#chosen[@]} > 0)); then
		[[ $all_asked == no ]] || fail 2 '-i and -a exclude each other: name interfaces, or take all'
		ALL=no
		INTERFACE=${chosen[*]}
	elif [[ $all_asked == yes ]]; then
		ALL=yes
	fi
}

check() {
	[[ $INTERVAL =~ ^([0-9]+\.?[0-9]*|\.[0-9]+)$ ]] ||
		fail 2 "--int '$INTERVAL': give seconds, 0 or more"
	[[ $DIRECTION =~ ^(ingress|egress|both)$ ]] ||
		fail 2 "--direction '$DIRECTION': give ingress, egress or both"
	[[ $WRITE_DIR ]] || fail 2 "--write '': give a directory"
}

# Sets USERLAND to a program that can be run.
find_userland() {
	if [[ $USERLAND ]]; then
		[[ -x $(type -P -- "$USERLAND") ]] ||
			fail 2 "--userland '$USERLAND' is no program that can be run: give the path of flowmon"
		return
	fi
	local script repository
	script=$(readlink -f "${BASH_SOURCE[0]}")
	repository=$(dirname "$(dirname "$script")")
	USERLAND=$repository/.venv/bin/flowmon
	[[ -x $USERLAND ]] || USERLAND=$(type -P flowmon) ||
		fail 1 "flowmon is neither at $USERLAND nor on the path: install it, or name it with --userland"
}

# Sets `interfaces`, the options that say where.
name_interfaces() {
	local name
	for name in ${INTERFACE//,/ }; do
		interfaces+=(--iface "$name")
	done
}

run() {
	local -a interfaces=() attaching table=()
	case $MAP in
		'') ;;
		*/*) table=(-f "$MAP") ;;
		*) table=(-p "$MAP") ;;
	esac
	if [[ $ALL == yes ]]; then
		attaching=(--all)
	else
		name_interfaces
		attaching=("${interfaces[@]}")
	fi
	attaching+=(--direction "$DIRECTION")
	[[ ! $PROGRAM ]] || attaching+=(--object "$PROGRAM")
	[[ ! $SECTION ]] || attaching+=(--section "$SECTION")

	local -a json_lines=() json_output=()
	[[ $JSON != yes ]] || json_lines=(-j) json_output=(--json)
	((${#chosen[@]} > 0)) || interfaces=()

	case $VERB in
		load) exec "$USERLAND" load "${attaching[@]}" "${table[@]}" ;;
		start)
			exec "$USERLAND" start "${attaching[@]}" "${table[@]}" \
				-i "$INTERVAL" -d "$WRITE_DIR" "${json_lines[@]}" -l "$LOG_FILE"
			;;
		stop) exec "$USERLAND" stop "${table[@]}" ;;
		unload) exec "$USERLAND" unload "${interfaces[@]}" "${table[@]}" ;;
		purge) exec "$USERLAND" purge "${table[@]}" ;;
		status) exec "$USERLAND" status "${json_output[@]}" "${table[@]}" ;;
	esac
}

chosen=()
set_defaults
parse "$@"
check
find_userland
run
