#include "python/function.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <stdexcept>

#include "python/tensors.h"

namespace imc {
namespace {

constexpr int kMostThreads = 1024, kMostArguments = 32, kMostSizes = 8;

struct Function {
  std::string name;
  Signature signature;
  Place place;
  std::vector<Kernel> kernels;
  Options options;
  std::vector<int> with;  // for each argument, that without which it is None, or -1
  int taken = 0;          // arguments from Python
  PyMethodDef method;
};

// One call: what Python passed, as it becomes what the kernel takes.
class Binding {
 public:
  explicit Binding(const Function& function) : function_(function), arguments_(function.signature.arguments) {}
  ~Binding() {
    if (workspace_) workspace_->release(workspace_);
  }
  Binding(const Binding&) = delete;
  Binding& operator=(const Binding&) = delete;

  void read(PyObject* const* given, Py_ssize_t count) {
    if (count != function_.taken) {
      throw Refusal{PyExc_TypeError, function_.name + " takes " + std::to_string(function_.taken) + " arguments, got " +
                                         std::to_string(count)};
    }
    for (std::size_t i = 0; i < arguments_.size(); ++i) {
      switch (arguments_[i].role) {
        case Role::tensor:
          read_tensor(i, *given++);
          break;
        case Role::number:
        case Role::threads:
          read_number(i, *given++);
          break;
        default:
          break;
      }
    }
    choose_kernel();
    for (std::size_t i = 0; i < arguments_.size(); ++i) {
      if (is_given(i)) bind(i);
    }
    for (std::size_t i = 0; i < arguments_.size(); ++i) {
      if (is_given(i)) check_tensor(i);
    }
    check_conditions();
    fill();
  }

  void run() const { kernel_->run(kernel_->kernel, slots_); }

 private:
  bool is_given(std::size_t i) const { return arguments_[i].role == Role::tensor && slots_[i].pointer; }

  [[noreturn]] void refuse(PyObject* type, std::size_t i, const std::string& sentence) const {
    throw Refusal{type, function_.name + ": " + arguments_[i].name + " must be " + sentence};
  }

  void read_tensor(std::size_t i, PyObject* object) {
    const Argument& argument = arguments_[i];
    if (object == Py_None && argument.optional) {
      slots_[i].pointer = nullptr;
      return;
    }
    const Torch& known = torch();
    if (!PyObject_TypeCheck(object, known.tensor_type)) {
      refuse(PyExc_TypeError, i, "a torch.Tensor " + argument.text + (argument.optional ? " or None" : "") + ", got " +
                                     Py_TYPE(object)->tp_name);
    }
    dlpack::Tensor& tensor = tensors_[i];
    if (known.api->tensor_from_object(object, &tensor) != 0) {
      refuse(PyExc_TypeError, i, "a dense tensor in memory, got one of which torch says: " + take_error());
    }
    if (!first_) first_ = &tensor;
    const bool pinned = tensor.device.type == dlpack::kPinned && function_.place.device_type == dlpack::kCpu;
    if (tensor.device.type != function_.place.device_type && !pinned) {
      const char* place = function_.place.device_type == dlpack::kCuda ? "CUDA" : "CPU";
      refuse(PyExc_ValueError, i, std::string("a ") + place + " tensor, got one on " + name_of(tensor.device));
    }
    if (tensor.device.id != first_->device.id && !pinned) {
      refuse(PyExc_ValueError, i, "on " + name_of(first_->device) + " as " + arguments_[0].name + ", got a tensor on " +
                                      name_of(tensor.device));
    }
    for (int d = 0; d < tensor.rank; ++d) {
      if (tensor.shape[d] < 1) refuse(PyExc_ValueError, i, "non-empty, got the shape " + shape_of(tensor));
    }
    if (!is_contiguous(tensor)) {
      refuse(PyExc_ValueError, i,
             "contiguous, got the strides " + list(tensor.rank, [&](int d) { return std::to_string(tensor.strides[d]); }) +
                 " for the shape " + shape_of(tensor));
    }
    char* data = static_cast<char*>(tensor.data) + (tensor.data ? tensor.byte_offset : 0);
    if (!data) refuse(PyExc_ValueError, i, "a tensor with memory, got one without");
    slots_[i].pointer = data;
  }

  void read_number(std::size_t i, PyObject* object) {
    const Argument& argument = arguments_[i];
    const char* got = Py_TYPE(object)->tp_name;
    switch (function_.kernels[0].types[i]) {
      case ArgumentType::boolean:
        if (!PyBool_Check(object)) refuse(PyExc_TypeError, i, std::string("True or False, got ") + got);
        slots_[i].integer = object == Py_True;
        break;
      case ArgumentType::real:
        if (!PyFloat_Check(object) && (!PyLong_Check(object) || PyBool_Check(object))) {
          refuse(PyExc_TypeError, i, std::string("a number, got ") + got);
        }
        slots_[i].real = PyFloat_AsDouble(object);
        if (PyErr_Occurred()) refuse(PyExc_ValueError, i, "a number that a double can hold: " + take_error());
        if (std::isnan(slots_[i].real)) refuse(PyExc_ValueError, i, "a number, got nan");
        break;
      default:
        if (!PyLong_Check(object) || PyBool_Check(object)) {
          refuse(PyExc_TypeError, i, std::string("an integer, got ") + got);
        }
        const std::int64_t low = argument.role == Role::threads;
        const std::int64_t high = low ? kMostThreads : function_.place.largest_size;
        slots_[i].integer = PyLong_AsLongLong(object);
        const bool overflow = PyErr_Occurred();
        PyErr_Clear();
        if (overflow || slots_[i].integer < low || slots_[i].integer > high) {
          refuse(PyExc_ValueError, i, "an integer from " + std::to_string(low) + " to " + std::to_string(high));
        }
    }
    if (argument.letter) sizes_.set(argument.letter, slots_[i].integer);
  }

  // By the element type of the first tensor.
  void choose_kernel() {
    for (const Kernel& kernel : function_.kernels) {
      if (same(first_->element, kernel.elements[0])) {
        kernel_ = &kernel;
        return;
      }
    }
    std::string accepted;
    for (const Kernel& kernel : function_.kernels) {
      accepted += (accepted.empty() ? "" : " or ") + name_of(kernel.elements[0]);
    }
    refuse(PyExc_TypeError, 0, accepted + ", got " + name_of(first_->element));
  }

  // The tensor's dimensions as the signature has them; false where there are too few or too many.
  bool dimensions(std::size_t i, std::int64_t* found) const {
    const Argument& argument = arguments_[i];
    const dlpack::Tensor& tensor = tensors_[i];
    const int wanted = static_cast<int>(argument.sizes.size()), further = tensor.rank - wanted;
    const bool gathers = argument.gathers_first || argument.gathers_last;
    if (gathers ? further < -1 : further != 0) return false;
    const int gathered = gathers ? further + 1 : 1, at = argument.gathers_last ? wanted - 1 : 0;
    for (int d = 0, from = 0; d < wanted; ++d) {
      found[d] = 1;
      for (int n = d == at ? gathered : 1; n > 0; --n) found[d] *= tensor.shape[from++];
    }
    return true;
  }

  void bind(std::size_t i) {
    std::int64_t found[kMostSizes];
    if (!dimensions(i, found)) refuse_shape(i);
    const std::vector<Size>& sizes = arguments_[i].sizes;
    for (std::size_t d = 0; d < sizes.size(); ++d) {
      if (sizes[d].letter && !sizes_.known(sizes[d].letter)) sizes_.set(sizes[d].letter, found[d]);
    }
  }

  void check_tensor(std::size_t i) const {
    const dlpack::Tensor& tensor = tensors_[i];
    const dlpack::DataType element = kernel_->elements[i];
    if (!same(tensor.element, element)) {
      refuse(PyExc_TypeError, i, name_of(element) + ", got " + name_of(tensor.element));
    }
    if (reinterpret_cast<std::uintptr_t>(slots_[i].pointer) % (element.bits / 8) != 0) {
      refuse(PyExc_ValueError, i, "aligned in memory to its elements, got a tensor that is not");
    }
    std::int64_t found[kMostSizes];
    dimensions(i, found);
    const std::vector<Size>& sizes = arguments_[i].sizes;
    for (std::size_t d = 0; d < sizes.size(); ++d) {
      if (!sizes[d].known(sizes_) || sizes[d].value(sizes_) != found[d]) refuse_shape(i);
      if (found[d] > function_.place.largest_size) {
        refuse(PyExc_ValueError, i, "of sizes up to " + std::to_string(function_.place.largest_size) + ", got " +
                                        shape_of(tensor));
      }
    }
  }

  [[noreturn]] void refuse_shape(std::size_t i) const {
    const std::vector<Size>& sizes = arguments_[i].sizes;
    const std::string required = list(sizes.size(), [&](std::size_t d) {
      const std::int64_t value = sizes[d].known(sizes_) ? sizes[d].value(sizes_) : -1;
      return value < 0 ? "any" : std::to_string(value);
    });
    refuse(PyExc_ValueError, i, "of the shape " + arguments_[i].text + ", here " + required + ", got " +
                                    shape_of(tensors_[i]));
  }

  void check_conditions() const {
    for (std::size_t i = 0; i < arguments_.size(); ++i) {
      const int with = function_.with[i];
      if (with < 0 || is_given(i) == is_given(static_cast<std::size_t>(with))) continue;
      refuse(PyExc_ValueError, i, (is_given(i) ? "None where " : "given where ") + arguments_[i].with +
                                      (is_given(i) ? " is None" : " is given"));
    }
    for (const Condition& condition : function_.signature.conditions) {
      if (condition.holds(sizes_)) continue;
      std::string given;
      for (char letter = 'a'; letter <= 'z'; ++letter) {
        if (condition.left.text.find(letter) == std::string::npos &&
            condition.right.text.find(letter) == std::string::npos) {
          continue;
        }
        given += (given.empty() ? "" : ", ") + std::string(1, letter) + " = " + std::to_string(sizes_[letter]) + " (" +
                 source_of(letter) + ")";
      }
      throw Refusal{PyExc_ValueError, function_.name + ": " + condition.text + " is required, got " + given};
    }
    if (function_.options.check) function_.options.check(Call{sizes_, slots_});
  }

  // The argument that says a size.
  std::string source_of(char letter) const {
    for (const Argument& argument : arguments_) {
      if (argument.role == Role::number && argument.letter == letter) return argument.name;
    }
    for (std::size_t i = 0; i < arguments_.size(); ++i) {
      for (const Size& size : arguments_[i].sizes) {
        if (is_given(i) && size.letter == letter) return arguments_[i].name + arguments_[i].text;
      }
    }
    return "given by no argument";
  }

  // What Python does not pass.
  void fill() {
    for (std::size_t i = 0; i < arguments_.size(); ++i) {
      const Argument& argument = arguments_[i];
      switch (argument.role) {
        case Role::size:
          slots_[i].integer = sizes_[argument.letter];
          break;
        case Role::workspace:
          take_workspace(i);
          break;
        case Role::device:
          slots_[i].integer = first_->device.id;
          break;
        case Role::stream: {
          void* stream = nullptr;
          if (first_->device.type == dlpack::kCuda &&
              torch().api->current_stream(first_->device.type, first_->device.id, &stream) != 0) {
            throw PythonError();
          }
          slots_[i].integer = static_cast<std::int64_t>(reinterpret_cast<std::uintptr_t>(stream));
          break;
        }
        default:
          break;
      }
    }
  }

  // From torch's allocator, on its current stream; given back when the kernel is launched.
  void take_workspace(std::size_t i) {
    std::int64_t wanted[kMostSizes];
    const std::vector<Size>& sizes = arguments_[i].sizes;
    for (std::size_t d = 0; d < sizes.size(); ++d) {
      wanted[d] = sizes[d].value(sizes_);
      if (wanted[d] < 0) refuse(PyExc_ValueError, i, "of a size that 63 bits can hold");
    }
    std::int64_t bytes = function_.options.workspace_bytes(wanted, first_->device.id);
    slots_[i].pointer = nullptr;
    if (bytes == 0) return;
    dlpack::Tensor prototype{nullptr, first_->device, 1, kElement<std::uint8_t>, &bytes, nullptr, 0};
    std::string failure;
    const auto set_error = [](void* context, const char*, const char* message) {
      *static_cast<std::string*>(context) = std::string(message, std::strcspn(message, "\n"));
    };
    if (torch().api->allocate(&prototype, &workspace_, &failure, set_error) != 0) {
      throw Refusal{PyExc_RuntimeError, function_.name + ": no memory for its workspace: " + failure};
    }
    slots_[i].pointer = static_cast<char*>(workspace_->tensor.data) + workspace_->tensor.byte_offset;
  }

  const Function& function_;
  const std::vector<Argument>& arguments_;
  Slot slots_[kMostArguments];
  dlpack::Tensor tensors_[kMostArguments];  // where the argument is a tensor and its slot not null
  const dlpack::Tensor* first_ = nullptr;
  const Kernel* kernel_ = nullptr;
  dlpack::ManagedTensor* workspace_ = nullptr;
  Sizes sizes_;
};

PyObject* call(PyObject* self, PyObject* const* given, Py_ssize_t count) {
  const auto* function = static_cast<const Function*>(PyCapsule_GetPointer(self, nullptr));
  try {
    Binding binding(*function);
    binding.read(given, count);
    const pybind11::gil_scoped_release released;
    binding.run();
  } catch (const Refusal& refusal) {
    PyErr_SetString(refusal.type, refusal.sentence.c_str());
    return nullptr;
  } catch (const PythonError&) {
    return nullptr;
  } catch (const std::bad_alloc&) {
    PyErr_SetString(PyExc_MemoryError, (function->name + ": there is not enough memory for its scratch").c_str());
    return nullptr;
  } catch (const std::invalid_argument& error) {
    PyErr_SetString(PyExc_ValueError, error.what());
    return nullptr;
  } catch (const std::exception& error) {
    PyErr_SetString(PyExc_RuntimeError, error.what());
    return nullptr;
  }
  Py_RETURN_NONE;
}

void check_definition(const Function& function, const char* signature) {
  const auto expected = [](const Argument& argument) {
    return argument.role == Role::tensor || argument.role == Role::workspace;
  };
  const std::vector<Argument>& arguments = function.signature.arguments;
  bool fits = !arguments.empty() && arguments.size() <= kMostArguments && arguments[0].role == Role::tensor && !arguments[0].optional;
  for (const Kernel& kernel : function.kernels) {
    fits = fits && kernel.types.size() == arguments.size();
    for (std::size_t i = 0; fits && i < arguments.size(); ++i) {
      fits = expected(arguments[i]) == (kernel.types[i] == ArgumentType::pointer) &&
             (arguments[i].role != Role::tensor || kernel.elements[i].bits > 0) &&
             arguments[i].sizes.size() <= kMostSizes && (arguments[i].with.empty() || function.with[i] >= 0);
    }
  }
  if (!fits) throw std::logic_error(function.name + ": the kernel does not fit " + signature);
}

}  // namespace

void define(pybind11::module_& module, const char* name, const char* signature, const Place& place,
            std::vector<Kernel> kernels, Options options) {
  const std::string qualified = PyModule_GetName(module.ptr()) + std::string(".") + name;
  // The function lives as long as the process.
  auto* function = new Function{qualified, Signature(signature, place.further), place, std::move(kernels),
                                std::move(options), {}, 0, {}};
  const std::vector<Argument>& arguments = function->signature.arguments;
  for (const Argument& argument : arguments) {
    const auto with = std::find_if(arguments.begin(), arguments.end(),
                                   [&](const Argument& other) { return other.name == argument.with; });
    function->with.push_back(with == arguments.end() ? -1 : static_cast<int>(with - arguments.begin()));
  }
  check_definition(*function, signature);
  for (const Argument& argument : arguments) {
    function->taken += argument.role == Role::tensor || argument.role == Role::number || argument.role == Role::threads;
  }
  function->method = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(&call)), METH_FASTCALL,
                      signature};
  const pybind11::capsule self(static_cast<void*>(function));
  const auto object = pybind11::reinterpret_steal<pybind11::object>(
      PyCFunction_NewEx(&function->method, self.ptr(), module.attr("__name__").ptr()));
  if (!object) throw pybind11::error_already_set();
  module.add_object(name, object);
}

}  // namespace imc
