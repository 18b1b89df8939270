"""The parts of tools/bench that measure nothing: counts, tables, pictures, plans and marks."""

import argparse
import contextlib
import io
import json
import struct
import sys
import tempfile
import unittest
import xml.etree.ElementTree as xml
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))
from bench_lib import docs, engines, flops, layers, ops, plot, race, roofs, sweep, sweep_report  # noqa: E402

SMOLLM = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
}


def run_result(run, speed):
    config = {**SMOLLM, "num_hidden_layers": run.get("layers") or 30}
    each = flops.per_token(config, run["sequence"], run.get("rank") or 16)
    work = run["steps"] * run["batch"] * run["sequence"] * each
    return run, {"median_step": speed, "flops_per_token": each, "work": work, "took": 10.0, "peak_bytes": 2**30}


def values_with(peak):
    one = {"threads": 2, "flops": {"bf16 tiles": peak, "fp32, 16 lanes": peak / 4}, "peak": peak}
    one.update(fastest="bf16 tiles", read_bytes=1e10, read_from=2**29)
    verdicts = {"2": [True, "below the peak"]}
    same = {"config": SMOLLM, "machine": "a <machine>", "begun": "2026-01-01", "load": [0.1]}
    return {"roofs": {"1": {**one, "threads": 1}, "2": one}, "verdicts": verdicts, **same}


class Flops(unittest.TestCase):
    def test_counts_products_of_a_small_model(self):
        config = {
            "hidden_size": 6,
            "intermediate_size": 10,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "vocab_size": 7,
        }
        # q, k, v, o of 6 x 6, gate, up, down of 6 x 10; forward and dX.
        frozen = 2 * 2 * (2 * (4 * 36 + 3 * 60) + 6 * 7)
        # x A' and s B', their dX, and dA and dB.
        adapters = 3 * 2 * 2 * 5 * (4 * (6 + 6) + 3 * (6 + 10))
        # Two products forward, five backward, each 2 x 6 a pair; token t sees t + 1 keys.
        pairs = sum(t + 1 for t in range(8)) / 8
        attention = 7 * 2 * 6 * pairs * 2
        self.assertAlmostEqual(flops.per_token(config, 8, rank=5), frozen + adapters + attention)

    def test_smollm2_at_512(self):
        self.assertAlmostEqual(flops.per_token(SMOLLM, 512) / 1e9, 0.629, places=3)

    def test_attention_rate_is_what_the_longer_row_costs_more(self):
        rate = 1e12
        speeds = [(n, 1 / (1e-3 + flops.attention_per_token(SMOLLM, n) / rate)) for n in (512, 8192)]
        self.assertAlmostEqual(flops.attention_rate(SMOLLM, *speeds) / rate, 1)

    def test_line_through(self):
        slope, offset, farthest = flops.line_through([(1, 5), (2, 7), (3, 9)])
        self.assertAlmostEqual(slope, 2)
        self.assertAlmostEqual(offset, 3)
        self.assertAlmostEqual(farthest, 0)
        self.assertAlmostEqual(flops.line_through([(0, 1), (1, 1), (2, 4)])[2], 1)  # 1.5 x + 0.5 is 2 at 1


class Docs(unittest.TestCase):
    def test_a_section_is_replaced_between_its_marks(self):
        text = "a\n<!-- tools/bench: x -->\nold\n<!-- end of x -->\nb\n"
        new = docs.replaced(text, "x", "new\n")
        self.assertEqual(new, "a\n<!-- tools/bench: x -->\nnew\n<!-- end of x -->\nb\n")
        self.assertEqual(docs.replaced(new, "x", "new"), new)

    def test_no_section_is_invented(self):
        for text in ("", "<!-- end of x -->\n<!-- tools/bench: x -->\n", "<!-- tools/bench: x -->\n" * 2 + "<!-- end of x -->"):
            self.assertIsNone(docs.replaced(text, "x", "new"))

    def test_benchmarks_md_has_every_section(self):
        text = docs.FILE.read_text(encoding="utf-8")
        for name in ("race-text", "race-short", "sweep", "ops", "op-share"):
            self.assertIsNotNone(docs.replaced(text, name, "new"), name)

    def test_the_command_says_nothing_of_this_machine(self):
        words = "--sweep --gguf /a --bin=/b --budget 9 --write-docs --work /c".split()
        self.assertEqual(docs.command(words), "tools/bench --sweep --budget 9")

    def test_table(self):
        self.assertEqual(docs.table(["", "b"], [["x", 1]]), "| | b |\n| --- | --- |\n| x | 1 |")


class Plot(unittest.TestCase):
    def test_ticks_are_round_and_reach_the_most(self):
        self.assertEqual(plot.ticks(1387), [0, 500, 1000, 1500])
        self.assertEqual(plot.ticks(100), [0, 20, 40, 60, 80, 100])
        self.assertEqual(plot.ticks(0.9)[-1], 1)
        self.assertEqual(plot.ticks(0), [0, 1])

    def picture(self):
        lines = [plot.series("a & b", [(512, 100), (1024, 50)]), plot.series("c", [(512, 25)], color="c", dash=True)]
        panels = [("<one>", "x", "y", lines, True), ("two", "x", "y", lines, False)]
        return plot.picture("all", panels, lines)

    def test_a_picture_is_well_formed_and_the_same_again(self):
        self.assertEqual(self.picture(), self.picture())
        root = xml.fromstring(self.picture())
        width, height = float(root.get("width")), float(root.get("height"))
        for dot in root.iter("{http://www.w3.org/2000/svg}circle"):
            self.assertTrue(0 <= float(dot.get("cx")) <= width and 0 <= float(dot.get("cy")) <= height)

    def test_points_stand_where_their_values_say(self):
        # The greatest value at the top, half of it halfway down to the axis.
        elements = plot.panel(0, 0, "t", "x", "y", [plot.series("s", [(512, 100), (1024, 50)])], True)
        dots = [xml.fromstring(e) for e in elements if e.startswith("<circle")]
        high = plot.HEIGHT - plot.TOP - plot.BOTTOM
        self.assertAlmostEqual(float(dots[0].get("cy")), plot.TOP, places=1)
        self.assertAlmostEqual(float(dots[1].get("cy")), plot.TOP + high / 2, places=1)
        self.assertLess(float(dots[0].get("cx")), float(dots[1].get("cx")))

    def test_bars(self):
        text = plot.bars("title", [("a", 10.0), ("bb", 5.0)], width=10)
        self.assertEqual(text, "title\n  a  ########## 10\n  bb #####      5")


class Sweep(unittest.TestCase):
    def options(self, **other):
        return argparse.Namespace(
            **{"steps": 4, "sequences": (512, 8192), "peer_sequences": (512,), "threads": 2, **other}
        )

    def test_the_plan_has_everything_once_and_the_main_curve_first(self):
        runs = sweep.plan(self.options())
        self.assertEqual(len(runs), len({sweep.key_of(run) for run in runs}))
        self.assertEqual([r["sequence"] for r in runs[:2]], [512, 8192])
        kinds = {
            (r["threads"], r["dtype"], r["recompute"]) for r in runs if r["engine"] == "qlora" and r["sequence"] == 8192
        }
        self.assertEqual(len(kinds), 8)
        self.assertEqual({r["rank"] for r in runs if r.get("rank")}, set(sweep.RANKS))
        self.assertEqual({r["layers"] for r in runs if r.get("layers")}, set(sweep.LAYERS))
        self.assertEqual([r["batch"] for r in runs if r["sequence"] == 8192 and r["engine"] == "qlora"], [1] * 8)

    def test_time_is_judged_by_the_runs_most_alike(self):
        run = sweep.run_of(512)
        done = [run_result(sweep.run_of(512), 1), run_result(sweep.run_of(512, dtype="fp32"), 1)]
        done[1][1]["took"] = 40.0
        self.assertAlmostEqual(sweep.seconds_of(run, done, SMOLLM), 10)
        self.assertAlmostEqual(sweep.seconds_of(sweep.run_of(512, dtype="fp32"), done, SMOLLM), 40)
        again = sweep.run_of(512, recompute=True)
        self.assertAlmostEqual(sweep.seconds_of(again, done, SMOLLM), 14)

    def test_results_are_kept_but_not_another_programs(self):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "sweep.json"
            sweep.Results(path, "one", False).keep(sweep.run_of(512), {"took": 1})
            self.assertEqual(sweep.Results(path, "one", False).get(sweep.run_of(512)), {"took": 1})
            self.assertIsNone(sweep.Results(path, "one", False).get(sweep.run_of(1024)))
            self.assertIsNone(sweep.Results(path, "one", True).get(sweep.run_of(512)))
            with contextlib.redirect_stdout(io.StringIO()) as said:
                self.assertIsNone(sweep.Results(path, "two", False).get(sweep.run_of(512)))
            self.assertIn("another build", said.getvalue())

    def test_marks_and_picture(self):
        speeds = {512: 1000.0, 8192: 600.0}
        done = [run_result(sweep.run_of(n), s) for n, s in speeds.items()]
        done += [run_result(sweep.run_of(512, threads=1), 500.0), run_result(sweep.run_of(512, rank=8), 1100.0)]
        done += [run_result(sweep.run_of(512, engine="peer"), 200.0)]
        done += [run_result(sweep.run_of(512, recompute=True, engine="peer"), 400.0)]
        done += [run_result({**sweep.run_of(512), "batch": b}, 1000.0) for b in (1, 2, 8)]
        peak = 1000 * done[0][1]["flops_per_token"] / 0.7
        values = values_with(peak)
        marks = sweep_report.marks_of(values, done, 2)
        told = {line.split(":")[0]: (good, line) for good, line in marks}
        self.assertEqual(told["the step at sequence 512"][0], True)
        self.assertIn("70 %", told["the step at sequence 512"][1])
        self.assertEqual(told["sequence 512"], (False, "sequence 512: 2.50 times the peer's tokens/s, 3.5 wanted"))
        self.assertEqual(told["2 threads"], (True, "2 threads: 2.00 times one's tokens/s, 1.8 wanted"))
        self.assertIn("attention from sequence 512 to 8192", told)
        grown = sweep_report.growth(done, 2)
        self.assertEqual([x for x, _ in grown["batch"]], [1, 2, 4, 8])
        self.assertIn("| batch |", sweep_report.growth_table(grown))
        xml.fromstring(sweep_report.pictures(values, done, 2))
        self.assertIn("| qlora | 2 | bf16 | no | 512 | 4 | 1,000 |", sweep_report.speeds_table(values, done))
        self.assertIn("peer   512", sweep_report.text_plot(done, 2))
        parts = [sweep_report.speeds_table(values, done), "", ""]
        left = [sweep.run_of(8192), sweep.run_of(512, rank=8), sweep.run_of(512, recompute=True)]
        line = "left out: qlora, bf16, 2 threads: sequence 8192, rank 8; qlora, bf16, recomputed, 2 threads: sequence 512"
        self.assertIn(line, sweep_report.section(values, parts, marks, left))

    def test_commands_say_what_was_asked(self):
        run = sweep.run_of(512, recompute=True, rank=8)
        command = engines.our_command("p", "b", "d", run, "o")
        for option, value in (("--gradient-checkpointing", "all"), ("--lora-r", "8"), ("--threads", "2")):
            self.assertEqual(command[command.index(option) + 1], value)
        plain = {"rows": "short", "sequence": 512, "batch": 8, "steps": 3, "threads": 2, "dtype": "bf16"}
        self.assertNotIn("--gradient-checkpointing", engines.our_command("p", "b", "d", plain, "o"))
        self.assertIn("messages", engines.our_command("p", "b", "d", plain, "o"))


class Race(unittest.TestCase):
    def test_marks(self):
        def run(tokens, rows, start):
            rates = {"tokens_per_second": tokens, "rows_per_second": rows}
            starts = {"first_step": start, "reserving": 0.1, "first_step_length": 1.2}
            return {**rates, **starts, "peak_bytes": 2**30}

        text = argparse.Namespace(rows="text", memory=None)
        short = argparse.Namespace(rows="short", memory=None)
        tight = argparse.Namespace(rows="text", memory="680MiB")
        ours, peers = [run(30, 3, 0.3)] * 3, [run(10, 2, 4.0)]
        good = [[g for g, _ in race.marks_of(o, ours, peers, "p")] for o in (text, short, tight)]
        self.assertEqual(good, [[False, True, True, False], [False, True], [True, True, True, False]])


    def test_table(self):
        run = {"tokens_per_second": 1000.0, "cpu_seconds": 1.0, "first_step": 0.3, "peak_bytes": 2**30}
        text = race.table_of({"qlora": [run, {**run, "tokens_per_second": 3000.0}], "peer": [run]})
        self.assertIn("| qlora (median of 2: 1,000.0, 3,000.0) | 2,000.0 | 1.00 | 1,024 MiB | 0.30 s |", text)
        self.assertIn("| peer (once) | 1,000.0 |", text)

    def test_the_share_of_the_peak_is_of_the_better_measurement(self):
        one = values_with(1e12)["roofs"]["2"]
        other = {**one, "flops": {"bf16 tiles": 2e12, "fp32, 16 lanes": 1e11}}
        best = roofs.better(one, other)
        self.assertEqual(best["flops"], {"bf16 tiles": 2e12, "fp32, 16 lanes": 2.5e11})
        self.assertEqual(best["peak"], 2e12)


class Ops(unittest.TestCase):
    def test_samples_are_sorted_into_parts(self):
        lines = [
            "# Samples: 100",
            "        40  [.] qlora::amx::gemm_part",
            "        20  [.] qlora::amx::attention_backward_keys_task",
            "        10  [.] qlora::amx::decode_nn<(qlora::Format)3>",
            "         5  [.] qlora::amx::gemm_tn_part",
            "         5  [.] __memset_avx512_unaligned_erms",
            "        20  [k] clear_page_erms",
        ]
        shares, system = ops.shares_of(lines)
        self.assertAlmostEqual(system, 0.2)
        self.assertAlmostEqual(shares["products"], 0.5)
        self.assertAlmostEqual(shares["attention"], 0.25)
        self.assertAlmostEqual(shares["decoding weights"], 0.125)
        self.assertAlmostEqual(shares["gradients of A and B"], 0.0625)
        self.assertAlmostEqual(shares["the rest, with the start"], 0.0625)

    def test_rows_and_marks(self):
        one = {"name": "few/nf4/M:1/K:576/iterations:1/manual_time", "real_time": 2e6, "time_unit": "ns", "GB/s": 8.0, "read%": 71.2}
        self.assertEqual(
            ops.row_of(one), ["few/nf4/M:1/K:576", "2.000", "8.0 GB/s", "71 % of reading from memory"]
        )
        self.assertEqual(ops.marks_of([one])[0][0], True)
        same = {"name": "product/nt_nf4_bf16/M:512/N:1/K:1", "real_time": 1, "time_unit": "ms", "GFLOP/s": 5}
        self.assertEqual(ops.row_of({**same, "peak%": 50, "own%": 50})[3], "50 % of the peak")
        self.assertEqual(ops.row_of({**same, "peak%": 5, "own%": 50})[3], "5 % of the peak; 50 % of what its instructions reach")

    def test_shapes_of_an_op_are_summed_up(self):
        def one(name, **counters):
            return {"name": f"{name}/iterations:1/manual_time", **counters}

        found = [
            one("product/nt/M:1/N:2", **{"GFLOP/s": 900.4, "peak%": 20, "own%": 20}),
            one("product/nt/M:3/N:2", **{"GFLOP/s": 1200.0, "peak%": 30, "own%": 30}),
            one("product/nn/M:3/N:2", **{"GFLOP/s": 50.0, "peak%": 5, "own%": 70}),
            one("rms/fp32/576", **{"GB/s": 3.25, "move%": 50.0}),
            one("adam/65536", **{"GB/s": 3.25, "move%": 50.0}),
            one("loss/rows:8", **{"GB/s": 3.25, "move%": 50.0}),
        ]
        self.assertEqual(
            ops.summary(found),
            [
                ["product/nt", 2, "900 to 1,200 GFLOP/s", "20 to 30 % of the peak"],
                ["product/nn", 1, "50 GFLOP/s", "5 % of the peak; 70 % of what its instructions reach"],
                ["rms/fp32", 1, "3.2 GB/s", "50 % of moving as many bytes"],
                ["adam", 1, "3.2 GB/s", "50 % of moving as many bytes"],
                ["loss", 1, "3.2 GB/s", "50 % of moving as many bytes"],
            ],
        )

    def test_a_run_is_void_where_the_peer_beats_the_peak(self):
        measured = values_with(1e12)["roofs"]["2"]
        self.assertTrue(roofs.verdict(measured, {"bf16 torch": 9e11, "fp32 torch": 2e11})[0])
        self.assertFalse(roofs.verdict(measured, {"bf16 torch": 1.1e12, "fp32 torch": 2e11})[0])
        self.assertFalse(roofs.verdict(measured, {"bf16 torch": 9e11, "fp32 torch": 2e11, "fp32 oneDNN": 3e11})[0])


    def test_loops_are_shares_of_their_own_roof(self):
        loops = {"bf16 tiles": {"registers": 9e11, "nearest cache": 6e11, "second cache": 5e11}}
        one = {**values_with(1e12)["roofs"]["1"], "loops": loops, "write_bytes": 0}
        self.assertEqual(roofs.loops_table([one]).splitlines()[2], "| 1 | bf16 tiles | 1,000 | 900 (90%) | 600 (60%) | 500 (50%) |")
        self.assertIsNone(roofs.written_line(one))
        self.assertEqual(roofs.written_line({**one, "write_bytes": 2.5e10}), "1 thread, written past the caches: 25.0 GB/s")


class Layers(unittest.TestCase):
    def test_the_first_layers_keep_their_bytes(self):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "model"
            folder.mkdir()
            (folder / "config.json").write_text('{"num_hidden_layers": 3}', encoding="utf-8")
            for other in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
                (folder / other).write_text("x", encoding="utf-8")
            tensors = {"model.norm.weight": b"norm", "model.layers.0.a": b"zero", "model.layers.2.a": b"two!"}
            header, data = {"__metadata__": {"format": "pt"}}, b""
            for tensor, content in tensors.items():
                offsets = [len(data), len(data) + len(content)]
                header[tensor] = {"dtype": "U8", "shape": [4], "data_offsets": offsets}
                data += content
            text = json.dumps(header).encode()
            (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data)
            out = layers.first_layers(folder, 2, Path(name) / "out")
            self.assertEqual(json.loads((out / "config.json").read_text())["num_hidden_layers"], 2)
            written = (out / "model.safetensors").read_bytes()
            (size,) = struct.unpack("<Q", written[:8])
            kept = json.loads(written[8 : 8 + size])
            self.assertEqual(set(kept), {"__metadata__", "model.norm.weight", "model.layers.0.a"})
            for tensor in ("model.norm.weight", "model.layers.0.a"):
                begin, end = kept[tensor]["data_offsets"]
                self.assertEqual(written[8 + size :][begin:end], tensors[tensor])


if __name__ == "__main__":
    unittest.main()
