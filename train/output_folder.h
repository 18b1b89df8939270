#pragma once
#include <string>

namespace qlora {

// Holds an output folder for one process: a lock that the system drops with the process, however it ends.
class OutputFolder {
 public:
  enum class Use {
    fresh,      // refused when it holds a checkpoint or an adapter
    resume,     // what is there is gone on with
    overwrite,  // what runs of ours left there is deleted; other files stay
  };
  // Makes the folder when absent. Category::usage, naming the remedies, when it is in use by another process
  // or holds a run and `use` is fresh; Category::io when the system fails.
  OutputFolder(const std::string& path, Use use);
  // A folder that it made and that nothing was written to is removed.
  ~OutputFolder();
  // Deletes what `use` says goes, and what a killed run was writing. Called once the inputs are known to be
  // good: a mistyped path must not cost a finished run, and inputs may lie in the folder.
  void clear() const;
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  void lock();
  std::string path_;
  Use use_;
  bool made_ = false;
  int fd_ = -1;
};

}  // namespace qlora
