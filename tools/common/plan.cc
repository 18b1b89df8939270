#include "tools/common/plan.h"

#include <algorithm>
#include <array>
#include <filesystem>

#include "memory/file.h"
#include "memory/process.h"
#include "tools/common/format.h"
#include "tools/common/main.h"
#include "tools/common/plan_rates.h"
#include "tools/common/threads.h"
#include "tools/common/train_run.h"
#include "train/reach.h"

namespace qlora::tools {
namespace {

constexpr int64_t kMostTokens = int64_t{1} << 21;
// Cards that a plan for a CUDA device looks at, beside the one asked about.
constexpr size_t kGigabyte = 1000000000;
constexpr std::array<size_t, 5> kCards = {8, 12, 16, 24, 80};

// "activations/x0/layer 3" without its layer.
std::string group_of(const std::string& name) {
  const size_t at = name.rfind("/layer ");
  return at == std::string::npos ? name : name.substr(0, at);
}

std::string padded(std::string s, size_t width, bool left) {
  const std::string fill(width - std::min(width, s.size()), ' ');
  return left ? s + fill : fill + s;
}

// What a card reaches: the smaller of its own limit and the host's.
struct Reached {
  size_t card_bytes = 0;
  int64_t longest = 0;     // 0: none
  size_t host_bytes = 0;   // that such a run takes
  bool host_ends = false;  // a longer one would fit on the card
};

// What is planned: with --dataset its largest batches, else rows of full length.
struct Planned {
  std::unique_ptr<Engine> engine;
  bool in_files = false;           // the model's weights are there
  int64_t longest = 0, batch = 0;  // that fit, 0: none
  std::vector<Reached> cards;      // of a CUDA device
};

Reached reached(const std::shared_ptr<const Model>& model, const AdapterLayout& layout, EngineOptions options,
                size_t card_bytes) {
  options.memory_budget = card_bytes;
  const int64_t rows = options.batch_rows;
  Reached r{.card_bytes = card_bytes,
            .longest = Reach::longest_sequence(model, layout, options, kMostTokens / rows)};
  if (r.longest == 0) return r;
  r.host_bytes = Reach::smallest(model, layout, options, rows, r.longest).host_bytes;
  options.host_budget.reset();
  r.host_ends = Reach::smallest(model, layout, options, rows, r.longest + Reach::kUnit).fits;
  return r;
}

Planned planned(Options& options, const Base& base, const TextTools& text, int threads) {
  const ModelDesc& desc = base.checkpoint->desc();
  const std::shared_ptr<const Model> model = Model::outline(base.checkpoint, base.spec);
  const Adapter adapter = make_adapter(options, base, desc);
  const int64_t length = options.get<int64_t>("max-seq-length");
  BatchMaxima train = full_rows(options.get<int64_t>("per-device-train-batch-size"), length), eval;
  std::unique_ptr<RowEncoder> encoder;
  std::optional<TrainData> data;  // part of what the process holds
  int64_t steps = 0;
  if (options.given("dataset")) {
    encoder = row_encoder(options, text, desc.vocab);
    data = read_train_data(options, *encoder, threads);
    const BatchPlan plan(data->train, batch_options(options));
    train = plan.maxima();
    steps = plan.total_steps();
    if (data->eval) eval = BatchPlan(*data->eval, eval_batch_options(options)).maxima();
  }
  return_freed_memory();
  EngineOptions engine = engine_options(options, threads, train, eval, steps);
  engine.must_fit = false;
  Planned p;
  p.in_files = !base.checkpoint->files().empty();
  p.engine = std::make_unique<Engine>(model, adapter.layout, engine);
  engine.process_bytes = p.engine->plan().process_bytes;
  engine.memory_budget = p.engine->plan().budget_bytes;
  p.longest = Reach::longest_sequence(model, adapter.layout, engine, kMostTokens / engine.batch_rows);
  p.batch = Reach::largest_batch(model, adapter.layout, engine, length, kMostTokens / length);
  for (size_t i = 0; i < kCards.size() && engine.device.kind == DeviceKind::cuda; ++i)
    p.cards.push_back(reached(model, adapter.layout, engine, kCards[i] * kGigabyte));
  return p;
}

void show_cards(const Planned& p, Screen& screen) {
  if (p.cards.empty()) return;
  screen.line("");
  screen.line("card      longest sequence   host memory");
  for (const Reached& r : p.cards)
    screen.line(padded(cat(r.card_bytes / kGigabyte, " GB"), 8, true) +
                (r.longest == 0 ? "  not even one of 64 tokens"
                                : padded(format_count(r.longest), 18, false) +
                                      padded(format_bytes(r.host_bytes), 14, false) +
                                      (r.host_ends ? "  --host-memory ends it" : "")));
}

// What pages take to and fro, beside the time that computing takes.
void show_pages(const EnginePlan& plan, Screen& screen, const Options& options) {
  const auto line = [&](const char* name, const PageTraffic& t, const char* when, const std::string& beside) {
    if (t.bytes_read + t.bytes_written == 0) return;
    const double rate = plan.host_bytes > 0 ? 0 : disk_rate(options);  // a card's pages are in host memory
    screen.line(cat(name, format_bytes(t.bytes_read), " in and ", format_bytes(t.bytes_written), " out ",
                    when,
                    rate > 0 ? cat(": ", format_value(transfer_seconds(t, rate)), " s at ",
                                   format_bytes(static_cast<uint64_t>(rate)), "/s of the disk")
                             : std::string(),
                    beside));
  };
  line("pages        ", plan.microbatch_pages, "a microbatch",
       cat(", beside ", format_value(plan.seconds), " s of computing, as estimated"));
  line("moments      ", plan.update_pages, "a step", "");
}

void show(const Planned& p, Screen& screen, const Options& options) {
  const EnginePlan& plan = p.engine->plan();
  for (const std::string& line : plan_table_lines(plan)) screen.line(line);
  screen.line("");
  screen.line(cat("activations  ", plan.choices()));
  if (plan.weights_paged)
    screen.line(cat("base         paged from the model's files",
                    p.in_files
                        ? ""
                        : "; there are none here: a run needs the model as a folder on disk, quantized "
                          "(qlora-quantize)"));
  if (plan.extra_seconds > 0)
    screen.line(cat("             ", format_bytes(plan.saved_bytes), " less than storing all, for ",
                    format_value(100 * plan.extra_seconds / (plan.seconds - plan.extra_seconds)),
                    "% more time a step, as estimated"));
  show_pages(p.engine->plan(), screen, options);
  screen.line(
      cat("packing      ",
          format_value(100.0 * static_cast<double>(plan.arena_bytes) / static_cast<double>(plan.live_bytes) -
                       100),
          "% above the bound of live bytes"));
  screen.line(cat("budget       ", format_bytes(plan.budget_bytes),
                  plan.host_budget_bytes ? cat(", ", format_bytes(*plan.host_budget_bytes), " of host memory")
                                         : std::string(),
                  plan.fits ? ": fits" : ": does not fit"));
  screen.line(cat("reaches      sequences of ", format_count(p.longest), " tokens, ",
                  options.get<int64_t>("per-device-train-batch-size"), " a batch; or ", format_count(p.batch),
                  " rows of ", format_count(options.get<int64_t>("max-seq-length"))));
  show_cards(p, screen);
}

}  // namespace

std::vector<std::string> plan_table_lines(const EnginePlan& plan) {
  struct Line {
    std::string name, why;
    size_t bytes;
    int layers;
    std::string last;  // region: weights of one layer may lie in two places
    Place where;
  };
  const bool two = plan.host_bytes > 0;  // a card and its host
  std::vector<Line> lines;
  for (const PlanRegion& r : plan.regions) {
    const std::string group = group_of(r.name);
    const bool layer = group != r.name;
    const auto same = [&](const Line& l) {
      return layer && l.layers > 0 && l.name == group && l.why == r.why;
    };
    if (const auto it = std::find_if(lines.begin(), lines.end(), same); it != lines.end()) {
      it->bytes += r.bytes;
      if (std::exchange(it->last, r.name) != r.name) ++it->layers;
    } else {
      lines.push_back({group, r.why, r.bytes, layer ? 1 : 0, r.name, r.where});
    }
  }
  if (two) {
    std::stable_sort(lines.begin(), lines.end(),
                     [](const Line& a, const Line& b) { return a.where < b.where; });
    lines.push_back({"total on the card", "", plan.device_bytes, 0, "", Place::device});
    lines.push_back({"total on the host", "", plan.host_bytes, 0, "", Place::host});
  } else {
    lines.push_back({"total", "", plan.total_bytes, 0, "", Place::device});
  }
  size_t width = 0;
  for (const Line& l : lines) width = std::max(width, l.name.size());
  std::vector<std::string> out;
  for (const Line& l : lines)
    out.push_back(padded(l.name, width, true) + "  " + padded(format_bytes(l.bytes), 10, false) + "  " +
                  (two ? padded(name_of(l.where), 6, true) + "  " : "") +
                  (l.layers > 0 ? cat(l.layers, l.layers == 1 ? " layer; " : " layers; ") : "") + l.why);
  return out;
}

Json plan_json(const EnginePlan& plan) {
  size_t by_place[3] = {};
  Json regions = Json::array();
  for (const PlanRegion& r : plan.regions) {
    by_place[static_cast<size_t>(r.where)] += r.bytes;
    regions.push_back({{"name", r.name}, {"where", name_of(r.where)}, {"bytes", r.bytes}, {"why", r.why}});
  }
  // Field by field and layer by layer, and those that are alike joined.
  std::vector<std::pair<std::string, std::vector<std::string>>> fields;
  for (const SavePolicy& policy : plan.policy) {
    size_t i = 0;
    BlockSaved().for_each_field(policy, [&](const char* name, const Matrix&, Keep k) {
      if (fields.size() <= i) fields.push_back({name, {}});
      fields[i++].second.push_back(name_of(k));
    });
  }
  Json choices = Json::object();
  for (const auto& [name, by_layer] : fields) {
    if (std::all_of(by_layer.begin(), by_layer.end(), [&](const auto& c) { return c == by_layer[0]; }))
      choices[name] = by_layer[0];
    else
      for (size_t b = 0; b < by_layer.size(); ++b) choices[cat(name, "/layer ", b)] = by_layer[b];
  }
  choices["base"] = plan.weights_paged ? "page" : "store";
  return {{"total_bytes", plan.total_bytes},
          {"device_bytes", by_place[static_cast<size_t>(Place::device)]},
          {"host_bytes", by_place[static_cast<size_t>(Place::host)]},
          {"file_bytes", by_place[static_cast<size_t>(Place::file)]},
          {"budget_bytes", plan.budget_bytes},
          {"regions", regions},
          {"choices", choices},
          {"host_budget_bytes", plan.host_budget_bytes ? Json(*plan.host_budget_bytes) : Json()},
          {"fits", plan.fits}};
}

namespace {

// Estimated seconds of a microbatch, and of what pages transfer in it and in an update; null where nobody
// knows.
void add_times(const EnginePlan& plan, const Options& options, Json& json) {
  const bool on_card = plan.host_bytes > 0;
  const auto transfer = [&](const PageTraffic& t) -> Json {
    if (t.bytes_read + t.bytes_written == 0) return 0.0;
    const double rate = on_card ? 0 : disk_rate(options);
    return rate > 0 ? Json(transfer_seconds(t, rate)) : Json(nullptr);
  };
  json["seconds"] = plan.seconds;
  json["transfer_bytes"] = plan.microbatch_pages.bytes_read + plan.microbatch_pages.bytes_written;
  json["transfer_seconds"] = transfer(plan.microbatch_pages);
  json["update_transfer_bytes"] = plan.update_pages.bytes_read + plan.update_pages.bytes_written;
  json["update_transfer_seconds"] = transfer(plan.update_pages);
}

}  // namespace

int plan(Options& options) {
  refuse_unbuilt(options);
  Screen screen(options);
  warn_of_unused_variables(options, screen);
  const int threads = thread_count(options);
  const Base base = open_base(options, true);
  settle(options, base);
  const std::filesystem::path& path = base.source.path;
  const TextTools text = path.extension() == ".json"
                             ? TextTools{}
                             : open_text_if_any(path, options.find<std::string>("chat-template"));
  const Planned p = planned(options, base, text, threads);
  show(p, screen, options);
  if (const auto picture = options.find<std::string>("picture"))
    write_file(*picture, plan_picture(*p.engine, base.name));
  if (options.get<bool>("json")) {
    Json json = plan_json(p.engine->plan());
    json["longest_sequence"] = p.longest;
    json["largest_batch"] = p.batch;
    add_times(p.engine->plan(), options, json);
    for (const Reached& r : p.cards)
      json["cards"].push_back({{"memory_bytes", r.card_bytes},
                               {"longest_sequence", r.longest},
                               {"host_bytes", r.host_bytes},
                               {"host_memory_ends_it", r.host_ends}});
    print_json(json);
  }
  return 0;
}

}  // namespace qlora::tools
