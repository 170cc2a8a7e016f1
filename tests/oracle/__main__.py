"""Put one case, or one group of cases, to a running server and print what it says.

    python -m tests.oracle http-json/17 --http 127.0.0.1:8000 --grpc 127.0.0.1:8001 --seed 5

`python -m tests.oracle --count` says how many cases there are; `python -m tests.oracle --write-repository DIR` writes
the models of the suite, for a server to be started on.
"""

import argparse
import pathlib

from tests.oracle import repository, suite
from tests.oracle.cases import DEFAULT_SEED
from tests.oracle.comparison import describe
from tests.oracle.coverage import count_cases, format_counts


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.oracle", description=__doc__)
    parser.add_argument("names", nargs="*", help="cases (group/number) or whole groups")
    parser.add_argument("--seed", type=int, default=DEFAULT_SEED)
    parser.add_argument("--http", default="127.0.0.1:8000", help="address and port of the HTTP endpoint")
    parser.add_argument("--grpc", default="127.0.0.1:8001", help="address and port of the gRPC endpoint")
    parser.add_argument("--count", action="store_true", help="print how many cases there are for each endpoint")
    parser.add_argument("--write-repository", type=pathlib.Path, metavar="DIR")
    arguments = parser.parse_args()
    if arguments.count:
        print(format_counts(count_cases(arguments.seed)))
    if arguments.write_repository:
        repository.build(arguments.write_repository)
    address, http_port = arguments.http.rsplit(":", 1)
    peer = suite.Peer("server", address, int(http_port), int(arguments.grpc.rsplit(":", 1)[1]))
    for name in arguments.names:
        cases = [suite.find_case(name, arguments.seed)] if "/" in name else suite.GROUPS[name](arguments.seed)
        for case in cases:
            print(f"{case.name}\n{case.describe()}\n-> {describe(case, peer.exchange(case))}\n")
    peer.close()


if __name__ == "__main__":
    main()
