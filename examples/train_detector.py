"""Trains a classifier of sessions on what `flowmon -d DIR --features` wrote, and tells how well it does.

    train_detector.py DIR --attackers 10.66.0.0/24 [--save detector.joblib]

Rules, each against one way to fool oneself:
- A sample is a session: an array of its first packets. Not a packet: those of one session are so alike that a model
  which has learned some of them has seen the others. All captures of a flow are on the same side of the split.
- No addresses and no ports: the labels were made from addresses, and in a laboratory each service has its port. A
  model that sees them learns how it was labelled. No time of day and no TTL: they tell when and where the attacker was.
- A flood is the same session a thousand times. A tested session that equals a learned one, but for its times, is a
  twin; the scores are told of all, and of those without twins.
- With --shuffle-labels there is nothing to learn: what is scored then is chance.
"""

import argparse
import sys
from collections.abc import Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path

import joblib
import pandas as pd
from pandas.util import hash_pandas_object
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import classification_report
from sklearn.model_selection import StratifiedGroupKFold

SESSION = ["flowId", "captureStartNanoseconds", "captureRound"]  # one capture of a flow
TIME = "interArrivalNanoseconds"
NUMBERS = ["biflowDirection", "ipTotalLength", "transportPayloadLength", TIME, "tcpWindowSize"]
FLAGS = {"FIN": 1, "SYN": 2, "RST": 4, "PSH": 8, "ACK": 16}
NOTHING = -1  # no such packet, or it has no such field
PARTS = 4  # one of them is for the test
CAPTURABLE = (1, 6, 17, 58)  # protocols


def session_arrays(packets: pd.DataFrame, first: int) -> pd.DataFrame:
    """A row a session, indexed by SESSION; for each of the first packets a column for each thing known of it.

    Packets stand at their packetIndex: one that was lost on the way leaves NOTHING in its place.
    """
    kept = packets[packets["packetIndex"] < first]
    known = kept[[*SESSION, "packetIndex", *NUMBERS]].copy()
    for name, bit in FLAGS.items():
        known[name] = (kept["tcpControlBits"].astype("Int64") & bit).ne(0)  # NA where there is no TCP
    wide = known.pivot(index=SESSION, columns="packetIndex", values=[*NUMBERS, *FLAGS])
    wide = wide.astype("Float64").fillna(NOTHING).astype("float64")
    columns = [(name, at) for at in range(first) for name in (*NUMBERS, *FLAGS)]
    wide = wide.reindex(columns=columns, fill_value=NOTHING)
    return wide.set_axis([f"{name} of packet {at}" for name, at in columns], axis="columns")


def read_sessions(directory: Path, first: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The array of each session, and in the same order the flow record that it is of."""
    if not (directory / "_features").is_dir():
        sys.exit(f"{directory}/_features is not there: was flowmon run with --features?")
    arrays = session_arrays(pd.read_parquet(directory / "_features"), first)
    flows = (
        pd.read_parquet(directory).drop_duplicates("flowId").set_index("flowId")
    )  # of a long flow, one record
    captured = arrays.index.get_level_values("flowId")
    lacking = flows["protocolIdentifier"].isin(CAPTURABLE) & ~flows.index.isin(captured)
    print(f"{directory}: {len(arrays):,} sessions; {lacking.sum():,} flows without packets")
    recorded = captured.isin(flows.index)
    return arrays[recorded], flows.loc[captured[recorded]].reset_index()


def by_address(flows: pd.DataFrame, attackers: str) -> pd.Series:
    """Labels: attack where either side is one of the addresses or prefixes, else benign."""
    networks = [ip_network(text) for text in attackers.split(",")]
    sides = flows[["sourceAddress", "destinationAddress"]].astype(str)
    theirs = [
        text for text in sides.stack().unique() if any(ip_address(text) in network for network in networks)
    ]
    return sides.isin(theirs).any(axis="columns").map({True: "attack", False: "benign"})


def by_file(flows: pd.DataFrame, path: Path) -> pd.Series:
    """Labels of a CSV file: its column `label` where all its other columns equal the flow record's, else benign."""
    rules = pd.read_csv(path, dtype=str)
    columns = [name for name in rules.columns if name != "label"]
    return flows[columns].astype(str).merge(rules, how="left", validate="m:1")["label"].fillna("benign")


def is_twin(tested: pd.DataFrame, learned: pd.DataFrame) -> pd.Series:
    """Whether a tested session equals a learned one in all but the times."""
    looks = [name for name in learned.columns if not name.startswith(TIME)]
    return hash_pandas_object(tested[looks], index=False).isin(
        hash_pandas_object(learned[looks], index=False)
    )


def report(title: str, truth: pd.Series, called: pd.Series) -> None:
    """Prints precision and recall of each class, and what was taken for what."""
    print(f"\n{title}: {len(truth):,} sessions\n")
    if truth.empty:
        return
    print(classification_report(truth, called, digits=3, zero_division=0))
    print(pd.crosstab(truth.rename("is"), called.rename("called")))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the user wants; None: of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="what flowmon -d wrote, with --features")
    labels = parser.add_mutually_exclusive_group(required=True)
    labels.add_argument("--attackers", metavar="PREFIXES", help="addresses or prefixes, with commas between")
    labels.add_argument(
        "--labels", type=Path, metavar="FILE", help="CSV: columns of the flow record, and label"
    )
    parser.add_argument("--first", type=int, default=10, metavar="K", help="packets of each session (10)")
    parser.add_argument(
        "--without", default="", metavar="NAMES", help="leave out, as tcpWindowSize,ipTotalLength"
    )
    parser.add_argument(
        "--group", default="flowId", metavar="COLUMN", help="equal in this: not split (flowId)"
    )
    parser.add_argument("--test", type=Path, metavar="DIR", help="learn all of the one, test on this one")
    parser.add_argument("--shuffle-labels", action="store_true", help="see what is scored by chance")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save", type=Path, metavar="FILE", help="the model, for joblib.load")
    asked = parser.parse_args(arguments)
    asked.without = [name for name in asked.without.split(",") if name]
    if unknown := set(asked.without) - {*NUMBERS, *FLAGS}:
        parser.error(f"--without knows {', '.join((*NUMBERS, *FLAGS))}; not {', '.join(sorted(unknown))}")
    return asked


def main(arguments: Sequence[str] | None = None) -> None:
    """Reads, labels, splits, learns, tells."""
    asked = parse(arguments)

    def labelled(directory: Path) -> tuple[pd.DataFrame, pd.Series, pd.Series]:
        arrays, flows = read_sessions(directory, asked.first)
        labels = by_file(flows, asked.labels) if asked.labels else by_address(flows, asked.attackers)
        left_out = tuple(f"{name} of packet" for name in asked.without)
        kept = [name for name in arrays.columns if not name.startswith(left_out)]
        return arrays[kept].reset_index(drop=True), labels, flows[asked.group].astype(str)

    learned, labels, groups = labelled(asked.directory)
    if labels.nunique() < 2:
        sys.exit(f"all sessions are {labels.iloc[0]}: there is nothing to tell apart")
    if asked.shuffle_labels:
        labels = labels.sample(frac=1, random_state=asked.seed, ignore_index=True)
    if asked.test:
        tested, truth, _ = labelled(asked.test)
    else:
        parts = StratifiedGroupKFold(PARTS, shuffle=True, random_state=asked.seed)
        learn, test = next(parts.split(learned, labels, groups))
        tested, truth = learned.iloc[test], labels.iloc[test]
        learned, labels = learned.iloc[learn], labels.iloc[learn]
    model = RandomForestClassifier(200, class_weight="balanced_subsample", random_state=asked.seed)
    model.fit(learned, labels)

    called = pd.Series(model.predict(tested), tested.index)
    report("all", truth, called)
    alone = ~is_twin(tested, learned)
    report("without twins", truth[alone], called[alone])
    print("\nwhat decides:")
    print(pd.Series(model.feature_importances_, learned.columns).nlargest(8).round(3).to_string())
    if asked.save:
        joblib.dump({"model": model, "columns": list(learned.columns), "first": asked.first}, asked.save)


if __name__ == "__main__":
    main()
