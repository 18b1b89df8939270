#pragma once
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "train/appended_file.h"

namespace qlora {

// CRC-32C (Castagnoli, RFC 3720), and as TFRecord files store it (rotated right by 15 and offset, so that a
// CRC of data that holds CRCs is sound).
uint32_t crc32c(std::string_view data);
uint32_t masked_crc32c(std::string_view data);

// A TensorBoard event file of scalars (tensorflow/core/util/event.proto, framed as TFRecord: length, its
// masked CRC, the message, its masked CRC). A file holds one session; TensorBoard joins the files of a
// folder.
class TensorBoardWriter {
 public:
  // Makes `folder` and in it a new file events.out.tfevents.SECONDS.HOST.PID.N. With `resumed_at` the session
  // says that it starts after that step, upon which TensorBoard drops what earlier files say of later steps.
  // Category::io.
  TensorBoardWriter(const std::string& folder, std::optional<int64_t> resumed_at);

  // One point, written at once. Tags as transformers has them: "train/loss", "eval/loss".
  void scalar(std::string_view tag, int64_t step, double value);
  // On the run's good end: the disk has all of it. Category::io.
  void finish() { file_.finish(); }
  const std::string& path() const { return file_.path(); }

 private:
  void record(std::string_view event);
  AppendedFile file_;
};

}  // namespace qlora
