#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <iostream>
#include <nlohmann/json.hpp>

#include "memory/error.h"
#include "tests/support/temp_folder.h"
#include "tools/common/main.h"
#include "tools/common/signals.h"
#include "tools/common/tables.h"
#include "tools/common/threads.h"

namespace qlora::tools {
namespace {

using Words = std::vector<std::string>;
using Body = std::function<int(Options&)>;

struct Ended {
  int code;
  std::string out, err;
};

std::string drain(int fd) {
  std::string text;
  char part[4096];
  for (ssize_t n; (n = read(fd, part, sizeof part)) > 0;) text.append(part, static_cast<size_t>(n));
  close(fd);
  return text;
}

const Build kBuild{[] { return "avx2"; }, ""};

// The tool in a process of its own. `out`: a file for stdout in place of the pipe; "-" closes the pipe's
// reader first.
Ended run(const Words& words, const Body& body, const std::string& out = "") {
  int o[2], e[2];
  if (pipe(o) != 0 || pipe(e) != 0) throw std::runtime_error("no pipe");
  if (out == "-") close(o[0]);
  std::cout.flush();
  const pid_t child = fork();
  if (child == 0) {
    dup2(out.empty() || out == "-" ? o[1] : open(out.c_str(), O_WRONLY), 1);
    dup2(e[1], 2);
    for (int fd : {o[0], o[1], e[0], e[1]}) close(fd);
    std::vector<std::string> all = words;
    all.insert(all.begin(), "/usr/bin/qlora-inspect");
    std::vector<char*> argv;
    for (std::string& word : all) argv.push_back(word.data());
    _exit(run_tool(static_cast<int>(argv.size()), argv.data(), inspect_table, kBuild, body));
  }
  close(o[1]);
  close(e[1]);
  Ended ended{0, out == "-" ? "" : drain(o[0]), drain(e[0])};
  int status = 0;
  waitpid(child, &status, 0);
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
  return ended;
}

int nothing(Options&) { return 0; }

TEST(Main, HelpVersionAndErrors) {
  const Ended help = run({"--help"}, nothing);
  EXPECT_EQ(help.code, 0);
  EXPECT_EQ(help.out.rfind("qlora-inspect says", 0), 0u) << help.out;
  EXPECT_EQ(help.err, "");
  const Ended version = run({"--version"}, nothing);
  for (const char* part : {"qlora-inspect ", "ISA avx2", "CUDA not built"})
    EXPECT_NE(version.out.find(part), std::string::npos) << version.out;
  const Ended wrong = run({"--tensor"}, nothing);
  EXPECT_EQ(wrong.code, 2);
  EXPECT_EQ(wrong.err,
            "qlora-inspect: error: unknown option --tensor, nearest is --tensors; --help lists all\n");
  EXPECT_EQ(wrong.out, "");
}

TEST(Main, WhatIsThrownBecomesTheExitCode) {
  for (int code = 1; code <= 6; ++code) {
    const Ended ended = run({"x"}, [&](Options&) -> int { fail(static_cast<Category>(code), "a\nb"); });
    EXPECT_EQ(ended.code, code);
    EXPECT_EQ(ended.err, "qlora-inspect: error: a b\n");
  }
  EXPECT_EQ(run({"x"}, [](Options&) -> int { throw std::bad_alloc(); }).code, 4);
  EXPECT_EQ(run({"x"}, [](Options&) -> int { throw std::runtime_error("x"); }).code, 1);
  EXPECT_EQ(
      run({"x"}, [](Options&) -> int { throw std::system_error(ENOSPC, std::generic_category()); }).code, 5);
  EXPECT_EQ(run({"x"}, [](Options&) { return 130; }).code, 130);
}

TEST(Main, ResultOnStdout) {
  const Body body = [](Options& options) {
    print_json({{"path", options.get<std::string>("path")}, {"odd", "\xff"}});
    return 0;
  };
  const Ended good = run({"x"}, body);
  EXPECT_EQ(good.out, "{\"path\":\"x\",\"odd\":\"\xef\xbf\xbd\"}\n");
  EXPECT_EQ(good.code, 0);
  const Ended full = run({"x"}, body, "/dev/full");
  EXPECT_EQ(full.code, 5);
  EXPECT_NE(full.err.find("stdout: writing the result failed"), std::string::npos) << full.err;
  const Ended left = run({"x"}, body, "-");
  EXPECT_EQ(left.code, 0) << left.err;
  EXPECT_EQ(left.err, "");
}

TEST(Main, FirstSignalLeavesUnlessItIsPolled) {
  for (const int number : {SIGINT, SIGTERM}) {
    const Ended at_once = run({"x"}, [&](Options&) {
      raise(number);
      return 0;
    });
    EXPECT_EQ(at_once.code, 128 + number);
    const Ended polled = run({"x"}, [&](Options&) {
      const PolledSignals signals;
      if (stop_signal() != 0) return 1;
      raise(number);
      return stop_signal() == number ? stop_exit_code() : 1;
    });
    EXPECT_EQ(polled.code, 128 + number);
    const Ended second = run({"x"}, [&](Options&) {
      const PolledSignals signals;
      raise(SIGINT);
      raise(number);
      return 0;
    });
    EXPECT_EQ(second.code, 128 + number);
  }
}

TEST(Threads, QuotaOfTheCgroup) {
  const test::TempFolder v2;
  v2.write("proc/self/cgroup", "0::/a/b\n");
  EXPECT_FALSE(cgroup_cpus(v2.path()));
  v2.write("sys/fs/cgroup/a/b/cpu.max", "max 100000\n");
  EXPECT_FALSE(cgroup_cpus(v2.path()));
  v2.write("sys/fs/cgroup/a/cpu.max", "150000 100000\n");
  EXPECT_EQ(cgroup_cpus(v2.path()), 1.5);
  v2.write("sys/fs/cgroup/a/b/cpu.max", "400000 100000\n");
  EXPECT_EQ(cgroup_cpus(v2.path()), 1.5);  // the tighter one above binds
  v2.write("sys/fs/cgroup/cpu.max", "300000 100000\n");
  EXPECT_EQ(cgroup_cpus(v2.path()), 1.5);
  v2.write("sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(cgroup_cpus(v2.path()), 0.5);

  const test::TempFolder v1;
  v1.write("proc/self/cgroup", "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n2:cpuset:/y\n");
  v1.write("sys/fs/cgroup/cpuset/y/cpu.cfs_quota_us", "1");
  EXPECT_FALSE(cgroup_cpus(v1.path()));
  v1.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "300000\n");
  v1.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(cgroup_cpus(v1.path()), 3.0);  // in a container the mount itself is the cgroup
  v1.write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  EXPECT_FALSE(cgroup_cpus(v1.path()));
}

TEST(Threads, BrokenCgroupFilesCountForNothing) {
  for (const char* text : {"", ":", "0:", "0::", "0::/../../x\n", "x:y:z\n", "0::/a\n0::/a\n"}) {
    const test::TempFolder scratch;
    scratch.write("proc/self/cgroup", text);
    scratch.write("sys/fs/cgroup/a/cpu.max", "1 0\n");
    EXPECT_FALSE(cgroup_cpus(scratch.path())) << text;
  }
}

TEST(Threads, OptionThenVariableThenMachine) {
  setenv("OMP_NUM_THREADS", "3,2", 1);
  EXPECT_EQ(thread_count(parse_options(inspect_table(), {"x"})), 3);
  EXPECT_EQ(thread_count(parse_options(inspect_table(), {"x", "--threads", "5"})), 5);
  setenv("OMP_NUM_THREADS", "many", 1);
  EXPECT_GE(default_threads(), 1);
  unsetenv("OMP_NUM_THREADS");
  cpu_set_t one, before;
  ASSERT_EQ(sched_getaffinity(0, sizeof before, &before), 0);
  CPU_ZERO(&one);
  for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; ++cpu)
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  ASSERT_EQ(sched_setaffinity(0, sizeof one, &one), 0);
  EXPECT_EQ(default_threads(), 1);
  sched_setaffinity(0, sizeof before, &before);
}

}  // namespace
}  // namespace qlora::tools
